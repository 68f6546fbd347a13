"""The ends of connections: those of clients that read nothing are shut down; goodbyes arrive before sockets close."""

import itertools
import logging
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import grpc
import pytest
from flcore_layout import SegmentRange
from flcore_transport import (
    ConnectionLost,
    DownloadRequest,
    Goodbye,
    GrpcConnection,
    GrpcServer,
    Join,
    flow_control,
    grpc_client,
    grpc_flow_control,
    grpc_sessions,
)
from flcore_transport.control import decode_from_server, encode_message
from flcore_transport.grpc_channel import CLIENT_METADATA, SERVICE
from flcore_transport.piece_format import PIECE_BODY_BYTES

from tests.transport.conftest import RecordingService, Rig, opened
from tests.transport.test_concurrent_transfers import Long


@pytest.fixture
def service() -> RecordingService:
    return RecordingService()


class Unread(Long):
    """Tells when the third piece is made: its client has read one, and the second is on its way."""

    def __init__(self) -> None:
        self.made, self.stands = itertools.count(1), threading.Event()

    def read(self, piece: SegmentRange) -> list[bytes]:
        if next(self.made) == 3:
            self.stands.set()
        return super().read(piece)


@pytest.fixture
def narrow(service: RecordingService, monkeypatch: pytest.MonkeyPatch) -> Iterator[Rig]:
    """A server with room for three transfers, and clients whose sockets take little of a piece that is not read."""
    options = {**dict(grpc_client.CHANNEL_OPTIONS), "grpc.http2.lookahead_bytes": 64 << 10}
    monkeypatch.setattr(grpc_client, "CHANNEL_OPTIONS", list(options.items()))
    monkeypatch.setattr(flow_control, "YIELD_AFTER_S", 600.0)
    monkeypatch.setattr(grpc_flow_control, "SHUT_DOWN_AFTER_S", 0.1)
    yield from opened(service, GrpcServer(service, in_flight_bytes=16 * PIECE_BODY_BYTES))


def standing(rig: Rig, client: str) -> Iterator[bytes]:
    """Begin a download of which one piece is read and the second is on its way."""
    rig.service.source = source = Unread()
    pieces = rig.connect().download(DownloadRequest(rig.secret_of(client), 1))
    next(pieces)
    assert source.stands.wait(20)
    return pieces


def test_the_connection_of_a_client_that_reads_nothing_is_shut_down(
    narrow: Rig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "flcore_transport")
    hung_up, threads, hang_up = threading.Event(), list[str](), grpc_flow_control.shut_down_connection

    def hang_up_and_tell(peer: str) -> None:
        threads.append(threading.current_thread().name)
        hang_up(peer)
        hung_up.set()

    monkeypatch.setattr(grpc_flow_control, "shut_down_connection", hang_up_and_tell)
    pieces = standing(narrow, "reads")
    narrow.service.connected["reads"].cancel_transfers(1)
    assert hung_up.wait(20)
    with pytest.raises(ConnectionLost):
        list(pieces)
    assert "does not read: its connection is shut down" in caplog.text
    assert "flcore-grpc" not in threads, "it would stop the event loop"
    assert "reads" in narrow.service.connected, "its session has a connection of its own"


def test_a_shut_down_that_fails_frees_the_window(narrow: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[str] = []
    monkeypatch.setattr(grpc_flow_control, "shut_down_connection", tried.append)
    unread = standing(narrow, "reads")
    narrow.service.connected["reads"].cancel_transfers(1)
    narrow.service.source = Long()
    others = [narrow.connect().download(DownloadRequest(narrow.secret_of(f"other-{number}"), 1)) for number in range(3)]
    assert all(next(pieces) for pieces in others), "there is room for two beside it"
    assert len(tried) == grpc_flow_control.MAX_SHUT_DOWNS
    del unread


def descriptors_of(file: int) -> int:
    """Return how many of this process's descriptors are of an open file."""
    count = 0
    for each in Path("/dev/fd").iterdir():
        with suppress(OSError):  # another thread's, and closed by now
            count += os.path.sameopenfile(int(each.name), file)
    return count


def test_a_shut_down_leaks_no_descriptor_and_spares_other_connections(tmp_path: Path) -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as listening,
        socket.create_connection(listening.getsockname(), timeout=20) as kept,
        socket.create_connection(listening.getsockname(), timeout=20) as gone,
        (tmp_path / "file").open("w") as no_socket,
    ):
        accepted = [listening.accept()[0] for _ in range(2)]
        host, port = gone.getsockname()
        for _ in range(3):
            grpc_flow_control.shut_down_connection(f"ipv4:{host}:{port}")
        assert [descriptors_of(each) for each in (no_socket.fileno(), *(one.fileno() for one in accepted))] == [1, 1, 1]
        assert gone.recv(1) == b""
        accepted[0].sendall(b"on")
        assert kept.recv(2) == b"on"
        for each in accepted:
            each.close()


def test_a_closing_server_keeps_its_sessions_until_the_clients_have_hung_up(
    service: RecordingService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grpc_sessions, "HANG_UP_TIMEOUT_S", 20.0)
    monkeypatch.setattr(grpc_sessions, "GOODBYE_TIMEOUT_S", 20.0)
    server = GrpcServer(service)
    with grpc.insecure_channel(server.address) as channel:
        join: grpc.UnaryStreamMultiCallable[bytes, bytes] = channel.unary_stream(f"/{SERVICE}/Session")
        call = join(encode_message(Join("reads", "1")), metadata=((CLIENT_METADATA, b"reads"),))
        next(call)
        closing = threading.Thread(target=server.close, args=("all done",))
        closing.start()
        assert decode_from_server(next(call)) == Goodbye("all done")
        closing.join(0.2)
        assert closing.is_alive() and call.is_active(), "the socket stays open after the goodbye"
        call.cancel()
        closing.join(5)
        assert not closing.is_alive()


def test_a_client_hangs_up_when_it_has_the_goodbye(service: RecordingService, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grpc_sessions, "HANG_UP_TIMEOUT_S", 20.0)
    monkeypatch.setattr(grpc_sessions, "GOODBYE_TIMEOUT_S", 20.0)
    server = GrpcServer(service)
    session = GrpcConnection(server.address).session(Join("listens", "1"))
    next(session)
    began_at = time.monotonic()
    closing = threading.Thread(target=server.close, args=("all done",))
    closing.start()
    assert next(session) == Goodbye("all done")  # the iterator is not asked for more
    closing.join(20)
    assert time.monotonic() - began_at < 10


def test_a_server_does_not_wait_long_for_a_client_that_does_not_read(service: RecordingService) -> None:
    server = GrpcServer(service)
    session = GrpcConnection(server.address).session(Join("asleep", "1"))
    next(session)
    began_at = time.monotonic()
    server.close("all done")
    assert time.monotonic() - began_at < grpc_sessions.GOODBYE_TIMEOUT_S + 2
