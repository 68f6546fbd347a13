"""gRPC alone: unauthenticated calls, connection limits, servers that cannot be reached."""

import resource
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import grpc
import pytest
from flcore_layout import Layout
from flcore_transport import (
    ConnectionLost,
    Failure,
    GrpcConnection,
    GrpcServer,
    Join,
    Outbox,
    Receipt,
    Refused,
    TransportError,
    UploadRequest,
    Welcome,
    connection_probe,
    flow_control,
    grpc_client,
    grpc_joins,
    grpc_server,
    grpc_workers,
)
from flcore_transport.control import (
    MAX_MESSAGE_BYTES,
    decode_from_server,
    decode_message,
    decode_reply,
    encode_message,
)
from flcore_transport.errors import CorruptMessage
from flcore_transport.grpc_channel import (
    CLIENT_METADATA,
    MAX_METADATA_BYTES,
    MAX_PENDING_JOINS,
    REFUSAL_METADATA,
    SERVICE,
    SESSION_METADATA,
    TOO_MANY_JOINS,
    UNAUTHENTICATED_BYTES,
)
from flcore_transport.messages import Credit, Refusal
from flcore_transport.piece_format import MAX_PIECE_BYTES

from tests.transport.conftest import MODEL, Collected, Pattern, RecordingService, Rig


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


NAMED = (CLIENT_METADATA, b"a")


def endless(first: bytes = b"") -> Iterator[bytes]:
    """Requests that are begun and not ended."""
    if first:
        yield first
    threading.Event().wait(20)


def calling(channel: grpc.Channel, method: str, requests: Iterator[bytes], *proof: tuple[str, bytes]) -> Any:
    call: Any = channel.stream_stream(f"/{SERVICE}/{method}")
    return call(requests, metadata=proof, timeout=20)


def joining(channel: grpc.Channel, join: Join) -> Any:
    """Join, and send nothing more."""
    return calling(channel, "Session", endless(encode_message(join)), (CLIENT_METADATA, join.client.encode()))


def codes_of_ended(calls: list[Any], count: int) -> list[grpc.StatusCode]:
    """Wait until `count` of the calls have ended, and return the codes of those that have."""
    ended = threading.Semaphore(0)
    for call in calls:
        if not call.add_callback(ended.release):  # it has ended
            ended.release()
    for _ in range(count):
        assert ended.acquire(timeout=20), f"fewer than {count} calls have ended"
    return [call.code() for call in calls if call.done()]


@pytest.mark.parametrize("method", ["Upload", "Download", "Report"])
@pytest.mark.parametrize("proof", [(), ((SESSION_METADATA, b"guess"),), ((SESSION_METADATA, b"\xff"),)])
def test_a_call_without_a_session_ends_before_its_first_message(
    channel: grpc.Channel, method: str, proof: tuple[tuple[str, bytes], ...]
) -> None:
    call = calling(channel, method, endless(), *proof)
    with pytest.raises(grpc.RpcError):
        next(call)
    assert call.code() is grpc.StatusCode.FAILED_PRECONDITION


@pytest.mark.parametrize(
    ("proof", "kind"),
    [
        ([(CLIENT_METADATA, b"stranger")], "not-invited"),
        ([(CLIENT_METADATA, b"a"), (CLIENT_METADATA, b"stranger")], "not-invited"),
        ([], "protocol"),
    ],
)
def test_a_join_of_a_client_that_may_not_join_ends_before_it_is_read(
    channel: grpc.Channel,
    service: RecordingService,
    monkeypatch: pytest.MonkeyPatch,
    proof: list[tuple[str, bytes]],
    kind: str,
) -> None:
    read, parsed = counting(monkeypatch)
    join = encode_message(Join("a", "1", content=bytes(MAX_MESSAGE_BYTES - 100)))
    for requests in (endless(), endless(join)):  # before it has come, and when it has
        call = calling(channel, "Session", requests, *proof)
        with pytest.raises(grpc.RpcError):
            next(call)
        refused = decode_message(Refusal, dict(call.trailing_metadata())[REFUSAL_METADATA])
        assert refused.kind == kind
    service.wait_until(lambda: len(service.refused_joins) == 2)
    assert not read and not parsed


def test_a_join_of_another_client_than_its_call_is_refused(channel: grpc.Channel, service: RecordingService) -> None:
    call = calling(channel, "Session", endless(encode_message(Join("b", "1"))), (CLIENT_METADATA, b"a"))
    with pytest.raises(grpc.RpcError):
        next(call)
    refused = decode_message(Refusal, dict(call.trailing_metadata())[REFUSAL_METADATA])
    assert refused == Refusal("wrong-identity", "client 'b' may not join: its call is that of 'a'")
    assert service.refused_joins == [("a", refused.message)] and not service.connected


def test_a_name_that_metadata_does_not_hold_is_refused(channel: grpc.Channel, monkeypatch: pytest.MonkeyPatch) -> None:
    read, parsed = counting(monkeypatch)
    call = calling(channel, "Session", endless(), (CLIENT_METADATA, b"a" * MAX_METADATA_BYTES))
    with pytest.raises(grpc.RpcError):
        next(call)
    assert call.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert not read and not parsed


def counting(monkeypatch: pytest.MonkeyPatch) -> tuple[list[object], list[object]]:
    """Return lists of the joins that a server reads and parses from now on."""
    read, parsed = list[object](), list[object]()

    async def read_and_count(context: Any) -> bytes | None:
        read.append(context)
        return await grpc_workers.read_message(context)

    def decode_and_count(message_type: type[Any], data: bytes) -> Any:
        parsed.append(message_type)
        return decode_message(message_type, data)

    monkeypatch.setattr(grpc_joins, "read_message", read_and_count)
    monkeypatch.setattr(grpc_joins, "decode_message", decode_and_count)
    return read, parsed


def test_few_joins_are_read_at_a_time_and_the_newest_evicts_the_oldest(channel: grpc.Channel, rig: Rig) -> None:
    others = [grpc.insecure_channel(rig.server.address, [("grpc.use_local_subchannel_pool", 1)]) for _ in range(6)]
    calls = [calling(each, "Session", endless(), NAMED) for each in others for _ in range(4)]
    assert codes_of_ended(calls, 24 - MAX_PENDING_JOINS) == [grpc.StatusCode.RESOURCE_EXHAUSTED] * (
        24 - MAX_PENDING_JOINS
    )
    assert rig.secret_of("a")
    assert UNAUTHENTICATED_BYTES == MAX_PENDING_JOINS * MAX_PIECE_BYTES
    for each in others:
        each.close()


@pytest.mark.parametrize("changed", [0, 5, -1])
def test_a_corrupt_message_is_refused_so_that_its_call_is_repeated(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, changed: int
) -> None:
    def encode_corrupt(message: object) -> bytes:
        data = bytearray(encode_message(message))
        data[changed] ^= 4
        return bytes(data)

    connection, secret = rig.connect(), rig.secret_of("a")
    monkeypatch.setattr(grpc_client, "encode_message", encode_corrupt)
    with pytest.raises(CorruptMessage, match="Join: corrupt, its checksum does not match its 16 bytes"):
        next(connection.session(Join("b", "1")))
    with pytest.raises(CorruptMessage, match="Failure: corrupt"):
        connection.report(Failure(secret, 1, "x"))
    with pytest.raises(CorruptMessage, match="UploadRequest: corrupt"):
        connection.upload(UploadRequest(secret, 1, b"{}", MODEL), Outbox(Pattern()))
    assert not rig.service.failures and not rig.service.deliveries and list(rig.service.connected) == ["a"]
    monkeypatch.undo()
    assert connection.report(Failure(secret, 1, "x")) == Receipt(1)


def test_a_join_keeps_its_slot_until_it_has_been_admitted(
    channel: grpc.Channel, service: RecordingService, monkeypatch: pytest.MonkeyPatch
) -> None:
    may_answer = threading.Event()

    def admit(client: str, content: bytes) -> bytes:
        assert may_answer.wait(20)
        return b"welcome"

    monkeypatch.setattr(service, "admit", admit)
    calls = [joining(channel, Join(f"{n}", "1")) for n in range(MAX_PENDING_JOINS + 4)]
    assert codes_of_ended(calls, 4) == [grpc.StatusCode.RESOURCE_EXHAUSTED] * 4
    held = [call for call in calls if not call.done()]
    held[0].cancel()  # its join waits for the thread all the same
    late = joining(channel, Join("late", "1"))
    assert codes_of_ended([late], 1) == [grpc.StatusCode.RESOURCE_EXHAUSTED]
    may_answer.set()
    for call in held[1:]:
        assert isinstance(decode_from_server(next(call)), Welcome)
        call.cancel()


def test_a_join_that_is_too_large_is_refused_before_it_waits(
    channel: grpc.Channel, service: RecordingService, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, may_answer = threading.Event(), threading.Event()

    def admit(client: str, content: bytes) -> bytes:
        asked.set()
        assert may_answer.wait(20)
        return b"welcome"

    monkeypatch.setattr(service, "admit", admit)
    slow = joining(channel, Join("slow", "1"))
    assert asked.wait(20)
    large = joining(channel, Join("large", "1", content=bytes(MAX_MESSAGE_BYTES)))
    assert codes_of_ended([large], 1) == [grpc.StatusCode.FAILED_PRECONDITION]
    may_answer.set()
    assert isinstance(decode_from_server(next(slow)), Welcome)
    slow.cancel()


def test_a_join_that_does_not_come_in_time_ends(channel: grpc.Channel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grpc_joins, "JOIN_TIMEOUT_S", 0.1)
    call = calling(channel, "Session", endless(), NAMED)
    with pytest.raises(grpc.RpcError):
        next(call)
    assert call.code() is grpc.StatusCode.UNAVAILABLE


def test_an_evicted_client_joins_again(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    came: list[object] = []
    accept = grpc_joins.JoinQueue.accept

    async def crowded(self: grpc_joins.JoinQueue, call: Any, *arguments: Any) -> Any:
        came.append(call)
        if len(came) == 1:
            await call.context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, TOO_MANY_JOINS)
        return await accept(self, call, *arguments)

    monkeypatch.setattr(grpc_joins.JoinQueue, "accept", crowded)
    assert rig.secret_of("a")
    assert len(came) == 2


def test_connections_leave_descriptors_for_the_process() -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (1024, before[1]))
        assert grpc_server.connection_limit() == 768
        resource.setrlimit(resource.RLIMIT_NOFILE, (256, before[1]))
        assert grpc_server.connection_limit() == 128
        assert [grpc_server.connection_limit(each) for each in (100, 10_000)] == [100, 128]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_silent_connections_are_bounded_and_closed(service: RecordingService, monkeypatch: pytest.MonkeyPatch) -> None:
    options = {**dict(grpc_server.SERVER_OPTIONS), "grpc.server_handshake_timeout_ms": 300}
    monkeypatch.setattr(grpc_server, "SERVER_OPTIONS", list(options.items()))
    server = GrpcServer(service, max_connections=8)
    host, _, port = server.address.partition(":")
    idle = [socket.create_connection((host, int(port))) for _ in range(16)]
    for each in idle:
        each.settimeout(10)
        while each.recv(1024):  # HTTP/2 settings, and then the end
            pass
        each.close()
    rig = Rig(service, server)
    for _ in range(100):  # as a client does: gRPC may count one as open for a moment after its end
        with suppress(ConnectionLost):
            assert rig.secret_of("a")
            break
        time.sleep(0.1)
    assert "a" in service.connected
    rig.opened[-1].close()
    server.close("the test is over")


def test_credit_is_exact_to_the_piece(rig: Rig, channel: grpc.Channel) -> None:
    secret, outbox = rig.secret_of("a"), Outbox(Pattern())
    sent: list[int] = []

    def requests() -> Iterator[bytes]:
        yield encode_message(UploadRequest(secret, 1, b"", MODEL))
        for index in range(4):
            sent.append(index)
            yield outbox.piece(index)

    call = calling(channel, "Upload", requests(), (SESSION_METADATA, secret.encode()))
    replies = [decode_reply(data) for data in call]
    assert replies == [*(Credit(received, received + 4) for received in range(5)), Receipt(1)]


def test_an_upload_that_is_cancelled_while_it_begins_is_ended(
    rig: Rig, channel: grpc.Channel, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, may_answer, call_ended = threading.Event(), threading.Event(), threading.Event()
    answer, end = rig.service.begin_upload, flow_control.FlowControl.end

    def slow(client: str, assignment_id: int, token: bytes, content: bytes, layout: Layout) -> Collected:
        asked.set()
        assert may_answer.wait(20)
        return answer(client, assignment_id, token, content, layout)

    def end_and_tell(self: flow_control.FlowControl, transfer: flow_control.Transfer, *, is_done: bool = False) -> Any:
        call_ended.set()
        return end(self, transfer, is_done=is_done)

    monkeypatch.setattr(rig.service, "begin_upload", slow)
    monkeypatch.setattr(flow_control.FlowControl, "end", end_and_tell)
    secret = rig.secret_of("a")
    request = encode_message(UploadRequest(secret, 1, b"", MODEL))
    call = calling(channel, "Upload", endless(request), (SESSION_METADATA, secret.encode()))
    assert asked.wait(20)
    call.cancel()
    assert call_ended.wait(20)
    may_answer.set()
    rig.service.wait_until(lambda: "a" in rig.service.deliveries and rig.service.deliveries["a"].has_ended)


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


def test_a_server_that_cannot_be_reached_says_why() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{unused.getsockname()[1]}"
        with pytest.raises(ConnectionLost, match=f"{address} cannot be reached: connection refused"):
            next(GrpcConnection(address).session(Join("a", "1")))


def test_a_port_that_something_else_listens_on_is_told() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        address = f"127.0.0.1:{other.getsockname()[1]}"
        told: list[str] = []

        def hang_up() -> None:
            with suppress(OSError):  # closed
                while True:
                    other.accept()[0].close()

        threading.Thread(target=hang_up, daemon=True).start()
        for _ in range(2):
            with pytest.raises(ConnectionLost) as error:
                next(GrpcConnection(address).session(Join("a", "1")))
            told.append(str(error.value))
        other.shutdown(socket.SHUT_RDWR)
    assert told == [f"{address} can be reached, but no flcore server answers there"] * 2


def test_another_server_that_speaks_grpc_is_told() -> None:
    other = grpc.server(ThreadPoolExecutor(1))
    port = other.add_insecure_port("127.0.0.1:0")
    other.start()
    with pytest.raises(
        TransportError, match=f"expected a flcore server at 127.0.0.1:{port}, found another gRPC server"
    ):
        next(GrpcConnection(f"127.0.0.1:{port}").session(Join("a", "1")))
    other.stop(None)


def test_a_name_that_is_not_known_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    assert connection_probe.unreachable_reason("nohost.invalid:8470") == (
        "the name 'nohost.invalid' is not known (Name or service not known)"
    )


def test_a_name_service_that_does_not_answer_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    may_end = threading.Event()

    def slow(*_: object, **__: object) -> None:
        may_end.wait(20)
        raise socket.gaierror(socket.EAI_AGAIN, "try again")

    monkeypatch.setattr(socket, "getaddrinfo", slow)
    monkeypatch.setattr(connection_probe, "PROBE_TIMEOUT_S", 0.1)
    assert connection_probe.unreachable_reason("nohost.invalid:8470") == "no answer within 0.1 s"
    may_end.set()
