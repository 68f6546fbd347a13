"""A server over TLS in its own process, whose memory a test reads: `python -m tests.transport.hostile_server KEYS`."""

import logging
import resource
import sys
from pathlib import Path

from flcore_transport import GrpcServer, TlsKeys

from tests.transport.conftest import RecordingService
from tests.transport.test_grpc_tls import CommonNames


def main() -> None:
    """Serve until the standard input ends; the first line printed is the address."""
    keys = Path(sys.argv[1])
    logging.disable(logging.INFO)
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    pair = (keys / "server.pem").read_bytes()
    tls = CommonNames(TlsKeys(pair, pair, (keys / "ca.pem").read_bytes()))
    server = GrpcServer(RecordingService(), tls=tls, in_flight_bytes=64 << 20)
    print(server.address, flush=True)
    sys.stdin.read()
    server.close()


if __name__ == "__main__":
    main()
