"""A server over TLS in its own process, whose memory a test reads: `... hostile_server KEYS [CONNECTIONS]`."""

import logging
import resource
import sys
from pathlib import Path

from flcore_transport import MAX_CONNECTIONS, Ask, GrpcServer, Identity, Reply, TlsKeys

from tests.transport.conftest import RecordingService
from tests.transport.test_grpc_tls import CommonNames


def answer(_: Identity | None, ask: Ask) -> Reply:
    """Send back what was asked."""
    return Reply(ask.content, ask.body)


def main() -> None:
    """Serve until the standard input ends; the first line printed is the address."""
    keys, max_connections = Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else MAX_CONNECTIONS
    logging.disable(logging.INFO)
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    pair = (keys / "server.pem").read_bytes()
    tls = CommonNames(TlsKeys(pair, pair, (keys / "ca.pem").read_bytes()))
    server = GrpcServer(
        RecordingService(), tls=tls, in_flight_bytes=64 << 20, max_connections=max_connections, answer=answer
    )
    print(server.address, flush=True)
    sys.stdin.read()
    server.close()


if __name__ == "__main__":
    main()
