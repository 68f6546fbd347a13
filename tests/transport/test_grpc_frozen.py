"""A client whose process stands still: the system answers for it, and it does not."""

import os
import signal
import subprocess
import sys
import time

import pytest
from flcore_transport import GrpcServer, grpc_channel, grpc_server

from tests.transport.conftest import RecordingService

CLIENT = """
import sys
from flcore_transport import GrpcConnection, Join
for message in GrpcConnection(sys.argv[1]).session(Join("a", "1")):
    print(type(message).__name__, flush=True)
"""

KEEPALIVE_S = 1.0


@pytest.mark.serial
def test_a_client_that_stands_still_is_noticed_by_its_keepalive(monkeypatch: pytest.MonkeyPatch) -> None:
    """TCP alone would notice after minutes, and the last of gRPC's three times after 78 s."""
    times = {name for name, value in grpc_server.SERVER_OPTIONS if "keepalive_ti" in name or "ping_timeout" in name}
    assert len(times) == 3
    shorter = [
        (name, int(value * KEEPALIVE_S * 1000 / grpc_channel.KEEPALIVE_MS) if name in times else value)
        for name, value in grpc_server.SERVER_OPTIONS
    ]
    monkeypatch.setattr(grpc_server, "SERVER_OPTIONS", shorter)
    service = RecordingService()
    server = GrpcServer(service)
    command = [sys.executable, "-c", CLIENT, server.address]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as client:
        assert client.stdout is not None and client.stdout.readline() == "Welcome\n"
        os.kill(client.pid, signal.SIGSTOP)
        stopped_at = time.monotonic()
        try:
            service.wait_until(lambda: "a" not in service.connected)
            # A keepalive, and the half of it that an answer may take; a busy machine may be late.
            assert time.monotonic() - stopped_at < 3 * KEEPALIVE_S
        finally:
            client.kill()
    server.close("the test is over")
