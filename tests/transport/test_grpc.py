"""What is particular to gRPC: strangers, readers that read nothing, names that nobody knows."""

import logging
import resource
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from flcore_transport import (
    MAX_PIECE_BYTES,
    PIECE_BODY_BYTES,
    ConnectionLost,
    Fetch,
    GrpcConnection,
    GrpcServer,
    Join,
    Offer,
    Outbox,
    Receipt,
    Refused,
    TransportError,
    Welcome,
    grpc_joins,
    grpc_server,
    grpc_turns,
    windows,
)
from flcore_transport.control import decode_reply, encode
from flcore_transport.grpc_channel import CROWDED, MOST_JOINS, SERVICE, SESSION_METADATA, STRANGERS_BYTES
from flcore_transport.messages import Grant

from tests.transport.conftest import MODEL, Pattern, RecordingService, Rig
from tests.transport.test_turns import Long


@pytest.fixture
def service() -> RecordingService:
    return RecordingService()


@pytest.fixture
def server(service: RecordingService) -> Iterator[GrpcServer]:
    made = GrpcServer(service)
    yield made
    made.close("the test is over")


@pytest.fixture
def rig(service: RecordingService, server: GrpcServer) -> Iterator[Rig]:
    made = Rig(service, server)
    yield made
    for connection in made.opened:
        connection.close()


@pytest.fixture
def channel(server: GrpcServer) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(server.address) as made:
        yield made


def endless(first: bytes = b"") -> Iterator[bytes]:
    """Requests that are begun and not ended."""
    if first:
        yield first
    threading.Event().wait(20)


def calling(channel: grpc.Channel, method: str, requests: Iterator[bytes], *proof: tuple[str, bytes]) -> Any:
    call: Any = channel.stream_stream(f"/{SERVICE}/{method}")
    return call(requests, metadata=proof, timeout=20)


@pytest.mark.parametrize("method", ["Upload", "Download", "Report"])
@pytest.mark.parametrize("proof", [(), ((SESSION_METADATA, b"guess"),), ((SESSION_METADATA, b"\xff"),)])
def test_a_call_without_a_session_ends_before_its_first_message(
    channel: grpc.Channel, method: str, proof: tuple[tuple[str, bytes], ...]
) -> None:
    call = calling(channel, method, endless(), *proof)
    with pytest.raises(grpc.RpcError):
        next(call)
    assert call.code() is grpc.StatusCode.FAILED_PRECONDITION


def test_only_so_many_strangers_are_read_at_a_time_and_the_newest_is(channel: grpc.Channel, rig: Rig) -> None:
    others = [grpc.insecure_channel(rig.server.address, [("grpc.use_local_subchannel_pool", 1)]) for _ in range(6)]
    calls = [calling(each, "Session", endless()) for each in others for _ in range(4)]
    deadline = time.monotonic() + 10
    while sum(call.done() for call in calls) < len(calls) - MOST_JOINS and time.monotonic() < deadline:
        time.sleep(0.01)
    assert [call.code() for call in calls if call.done()] == [grpc.StatusCode.RESOURCE_EXHAUSTED] * (24 - MOST_JOINS)
    assert rig.secret_of("a")
    assert STRANGERS_BYTES == MOST_JOINS * MAX_PIECE_BYTES
    for each in others:
        each.close()


def test_a_join_that_does_not_come_in_time_ends(channel: grpc.Channel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grpc_joins, "READING_S", 0.1)
    call = calling(channel, "Session", endless())
    with pytest.raises(grpc.RpcError):
        next(call)
    assert call.code() is grpc.StatusCode.UNAVAILABLE


def test_a_client_that_came_in_a_crowd_joins_again(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    came: list[object] = []
    read = grpc_joins.Joins.read

    async def crowded(self: grpc_joins.Joins, context: Any) -> Join:
        came.append(context)
        if len(came) == 1:
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, CROWDED)
        return await read(self, context)

    monkeypatch.setattr(grpc_joins.Joins, "read", crowded)
    assert rig.secret_of("a")
    assert len(came) == 2


def test_connections_leave_descriptors_for_the_process() -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (1024, before[1]))
        assert grpc_server.most_connections() == 768
        resource.setrlimit(resource.RLIMIT_NOFILE, (256, before[1]))
        assert grpc_server.most_connections() == 128
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_connections_that_say_nothing_are_bounded_and_closed(
    service: RecordingService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grpc_server, "most_connections", lambda: 8)
    options = {**dict(grpc_server.SERVER_OPTIONS), "grpc.server_handshake_timeout_ms": 300}
    monkeypatch.setattr(grpc_server, "SERVER_OPTIONS", list(options.items()))
    server = GrpcServer(service)
    host, _, port = server.address.partition(":")
    idle = [socket.create_connection((host, int(port))) for _ in range(16)]
    rig = Rig(service, server)
    while True:  # as a client does
        try:
            assert rig.secret_of("a")
            break
        except ConnectionLost:
            time.sleep(0.1)
    for each in idle:
        each.settimeout(10)
        while each.recv(1024):  # HTTP/2 settings, and then the end
            pass
        each.close()
    rig.opened[-1].close()
    server.close("the test is over")


def test_a_grant_is_to_the_piece(rig: Rig, channel: grpc.Channel) -> None:
    secret, outbox = rig.secret_of("a"), Outbox(Pattern())
    sent: list[int] = []

    def requests() -> Iterator[bytes]:
        yield encode(Offer(secret, 1, b"", MODEL))
        for index in range(4):
            sent.append(index)
            yield outbox.piece(index)

    call = calling(channel, "Upload", requests(), (SESSION_METADATA, secret.encode()))
    replies = [decode_reply(data) for data in call]
    assert replies == [*(Grant(received, received + 4) for received in range(5)), Receipt(1)]


def test_a_reader_that_reads_nothing_is_hung_up_on(
    service: RecordingService, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(windows, "PATIENCE_S", 600.0)
    monkeypatch.setattr(grpc_turns, "HANG_UP_S", 0.1)
    caplog.set_level(logging.INFO, "flcore_transport")
    hung_up, hang_up = threading.Event(), grpc_turns.hang_up

    def hang_up_and_tell(peer: str) -> None:
        hang_up(peer)
        hung_up.set()

    monkeypatch.setattr(grpc_turns, "hang_up", hang_up_and_tell)
    service.source = Long()
    server = GrpcServer(service, windows_bytes=16 * PIECE_BODY_BYTES)
    rig = Rig(service, server)
    secret = rig.secret_of("reads")
    pieces = rig.connect().download(Fetch(secret, 1))
    next(pieces)
    time.sleep(0.3)  # until gRPC's buffers are full
    service.connected["reads"].cut(1)
    assert hung_up.wait(20)
    with pytest.raises(ConnectionLost):
        list(pieces)
    assert "does not read: its connection is shut down" in caplog.text
    assert "reads" in service.connected, "its session has a connection of its own"
    for connection in rig.opened:
        connection.close()
    server.close("the test is over")


def test_a_join_that_is_refused_after_the_server_has_stopped_breaks_nothing(
    service: RecordingService, monkeypatch: pytest.MonkeyPatch
) -> None:
    """gRPC crashes the process where a call of a stopped server is given a status."""
    asked, may_answer = threading.Event(), threading.Event()

    def admit(client: str, content: bytes) -> bytes:
        asked.set()
        assert may_answer.wait(20)
        raise Refused("not-invited", "who are you?")

    monkeypatch.setattr(service, "admit", admit)
    server = GrpcServer(service)
    connection = GrpcConnection(server.address)
    errors: list[TransportError] = []

    def join() -> None:
        try:
            next(connection.session(Join("a", "1")))
        except TransportError as error:
            errors.append(error)

    joining = threading.Thread(target=join)
    joining.start()
    assert asked.wait(20)
    server.close("the test is over")
    may_answer.set()
    joining.join(20)
    assert isinstance(errors[0], ConnectionLost)
    after = GrpcServer(RecordingService())
    assert isinstance(next(GrpcConnection(after.address).session(Join("a", "1"))), Welcome)
    after.close("the test is over")


def test_a_server_that_cannot_be_reached_is_told_within_seconds() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{unused.getsockname()[1]}"
        with pytest.raises(ConnectionLost, match=f"{address} cannot be reached: connection refused"):
            next(GrpcConnection(address).session(Join("a", "1")))
    began = time.monotonic()
    with pytest.raises(
        ConnectionLost, match=r"nohost.invalid:8470 cannot be reached: the name 'nohost.invalid' is not known"
    ):
        next(GrpcConnection("nohost.invalid:8470", allow_remote=True).session(Join("a", "1")))
    assert time.monotonic() - began < 5
