"""What every transport does: this file runs on gRPC and on the in-process twin."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from flcore_layout import Layout
from flcore_transport import (
    ClientLink,
    ConnectionLost,
    DownloadRequest,
    Failure,
    FromServer,
    Goodbye,
    Inbox,
    InProcessConnection,
    InProcessServer,
    Join,
    Outbox,
    Receipt,
    Refused,
    TaskAssignment,
    UploadRequest,
    Welcome,
    Withdrawal,
)
from flcore_transport.piece_format import split_body

from tests.transport.conftest import MIXED, MODEL, Collected, Connection, MixedPattern, Pattern, Rig


def join(rig: Rig, client: str = "a", instance: str = "1", content: bytes = b"!") -> tuple[str, Iterator[FromServer]]:
    session = rig.connect().session(Join(client, instance, content))
    welcome = next(session)
    assert isinstance(welcome, Welcome)
    assert welcome.content == f"welcome, {client}".encode() + content
    return welcome.session_secret, session


def test_assignments_are_pushed_in_order_until_the_goodbye(rig: Rig) -> None:
    _, session = join(rig)
    for number in range(1, 100):
        rig.service.connected["a"].send(TaskAssignment(number, b"do it", MODEL, "id"))
    rig.server.close("all done")
    assert list(session) == [*(TaskAssignment(n, b"do it", MODEL, "id") for n in range(1, 100)), Goodbye("all done")]
    rig.service.wait_until(lambda: not rig.service.connected)


def test_another_protocol_version_is_refused(rig: Rig) -> None:
    with pytest.raises(Refused, match="protocol version 4") as caught:
        next(rig.connect().session(Join("a", "1", protocol=1)))
    assert caught.value.kind == "protocol"


def test_what_the_service_refuses_reaches_the_client(rig: Rig) -> None:
    with pytest.raises(Refused, match="who are you") as caught:
        next(rig.connect().session(Join("stranger", "1")))
    assert caught.value.kind == "not-invited"


def test_a_long_refusal_is_cut_and_still_arrives(rig: Rig) -> None:
    secret, _ = join(rig, "a" * 6000)
    with pytest.raises(Refused, match="aaa"):
        rig.fetch(secret, assignment_id=2)


def test_a_name_is_taken_while_its_client_is_connected(rig: Rig) -> None:
    secret, session = join(rig, instance="1")
    with pytest.raises(Refused, match="connected already") as caught:
        next(rig.connect().session(Join("a", "2")))
    assert caught.value.kind == "name-taken"
    del session
    rig.opened[0].close()
    rig.service.wait_until(lambda: "a" not in rig.service.connected)
    join(rig, instance="2")
    with pytest.raises(Refused, match="does not know this session"):
        rig.fetch(secret)


def test_a_client_that_comes_back_keeps_its_session_and_the_old_stream_ends_nothing(rig: Rig) -> None:
    secret, first = join(rig)
    again, second = join(rig)
    assert again == secret
    with pytest.raises(Refused, match="a newer call of this session took its place"):
        list(first)
    rig.opened[0].close()
    rig.service.connected["a"].send(TaskAssignment(1, b""))
    assert next(second) == TaskAssignment(1, b"")
    assert "a" in rig.service.connected


def test_of_two_downloads_at_once_each_ends(rig: Rig) -> None:
    """The older one ends with its reason, also if its first piece is on the way."""
    secret, _ = join(rig)
    count = len(rig.fetch(secret))

    def fetch() -> int:
        try:
            return len(rig.fetch(secret))
        except Refused as error:
            return 0 if error.kind == "superseded" else -1

    with ThreadPoolExecutor(2) as pool:
        for _ in range(30):
            ended = [pool.submit(fetch) for _ in range(2)]
            got = [download.result(20) for download in ended]
            assert count in got and set(got) <= {0, count}


def test_a_payload_is_read_whole_or_from_a_piece_on(rig: Rig) -> None:
    secret, _ = join(rig)
    sink = Collected(MODEL)
    inbox = Inbox(MODEL, sink)
    pieces = rig.fetch(secret)
    for piece in pieces:
        inbox.accept(piece)
    inbox.finish()
    assert sink.bodies == [Pattern().read(piece)[0] for piece in inbox.piece_ranges]
    assert rig.fetch(secret, first_piece=3) == pieces[3:]
    assert rig.fetch(secret, first_piece=4) == []


def test_calls_need_a_session(rig: Rig) -> None:
    calls: list[Callable[[Connection], object]] = [
        lambda connection: list(connection.download(DownloadRequest("guess", 1))),
        lambda connection: connection.upload(UploadRequest("guess", 1, b"", MODEL), Outbox(Pattern())),
        lambda connection: connection.report(Failure("gu\u00e9ss", 1, "")),
    ]
    for call in calls:
        with pytest.raises(Refused, match="does not know this session") as caught:
            call(rig.connect())
        assert caught.value.kind == "unknown-session"


def upload(rig: Rig, secret: str) -> Receipt:
    return rig.connect().upload(UploadRequest(secret, 1, b"mine", MODEL), Outbox(Pattern()))


def test_an_upload_arrives_whole_and_is_receipted(rig: Rig) -> None:
    secret, _ = join(rig)
    assert upload(rig, secret) == Receipt(1)
    delivery = rig.service.deliveries["a"]
    assert delivery.is_committed
    assert delivery.bodies == [Pattern().read(piece)[0] for piece in Outbox(Pattern()).piece_ranges]
    assert rig.service.contents == [b"mine"]


def test_float_and_quantized_segments_travel_together_both_ways(rig: Rig) -> None:
    secret, _ = join(rig)
    rig.service.source = source = MixedPattern()
    fetched = Collected(MIXED)
    for piece in rig.fetch(secret):
        fetched.accept(piece)
    assert rig.connect().upload(UploadRequest(secret, 1, b"", MIXED), Outbox(source)) == Receipt(1)
    for bodies in (fetched.bodies, rig.service.deliveries["a"].bodies):
        for body, of in zip(bodies, Outbox(source).piece_ranges, strict=True):
            elements, scales = split_body(of.dtype, of.count, memoryview(body))
            assert (bytes(elements), bytes(scales)) == source.expected(of)


def test_a_receipt_can_be_asked_for_again(rig: Rig) -> None:
    secret, _ = join(rig)
    assert upload(rig, secret) == upload(rig, secret) == Receipt(1)
    assert len(rig.service.deliveries["a"].bodies) == 4


def test_an_answer_without_pieces_is_an_upload_too(rig: Rig) -> None:
    secret, _ = join(rig)

    class Nothing:
        layout = Layout()

        def read(self, piece: object) -> list[bytes]:
            raise AssertionError

    assert rig.connect().upload(UploadRequest(secret, 1, b"metrics"), Outbox(Nothing())) == Receipt(1)
    assert rig.service.deliveries["a"].is_committed


def test_an_interrupted_upload_resumes_at_the_first_missing_piece(rig: Rig) -> None:
    secret, _ = join(rig)
    connection = rig.connect()
    made: list[int] = []

    class Breaking(Outbox):
        def piece(self, index: int) -> bytes:
            if index == 2:
                rig.service.wait_until(lambda: rig.service.deliveries["a"].received == 2)
                connection.close()
            return super().piece(index)

    class Counting(Outbox):
        def piece(self, index: int) -> bytes:
            made.append(index)
            return super().piece(index)

    with pytest.raises(ConnectionLost):
        connection.upload(UploadRequest(secret, 1, b"mine", MODEL), Breaking(Pattern()))
    delivery = rig.service.deliveries["a"]
    assert not delivery.is_committed
    first = delivery.received
    assert first >= 2
    assert rig.connect().upload(UploadRequest(secret, 1, b"mine", MODEL), Counting(Pattern())) == Receipt(1)
    assert made == list(range(first, 4))
    assert delivery.bodies == [Pattern().read(piece)[0] for piece in Outbox(Pattern()).piece_ranges]


def test_a_corrupt_piece_ends_the_upload_with_a_refusal(rig: Rig) -> None:
    secret, _ = join(rig)

    class Corrupt(Outbox):
        def piece(self, index: int) -> bytes:
            whole = super().piece(index)
            return whole[:-1] + b"\xaa" if index == 1 else whole

    with pytest.raises(Refused, match="piece 1 of 4: corrupt") as caught:
        rig.connect().upload(UploadRequest(secret, 1, b"", MODEL), Corrupt(Pattern()))
    assert caught.value.kind == "bad-piece"
    assert not rig.service.deliveries["a"].is_committed


def test_failures_are_reported(rig: Rig) -> None:
    secret, _ = join(rig)
    assert rig.connect().report(Failure(secret, 3, "no data")) == Receipt(3)
    assert rig.service.failures == [("a", 3, "no data")]


def test_closing_a_connection_ends_its_session(rig: Rig) -> None:
    _, session = join(rig)
    connection = rig.opened[0]
    threading.Timer(0.1, connection.close).start()
    with pytest.raises(ConnectionLost):
        next(session)
    connection.close()
    with pytest.raises(ConnectionLost):
        next(connection.session(Join("a", "1")))


def test_ending_transfers_keeps_the_session_and_later_calls(rig: Rig) -> None:
    connection = rig.connect()
    session = connection.session(Join("a", "1"))
    welcome = next(session)
    assert isinstance(welcome, Welcome)
    pieces = connection.download(DownloadRequest(welcome.session_secret, 1))
    next(pieces)
    for end in connection.running_transfers():
        end()
    with pytest.raises(ConnectionLost):
        list(pieces)
    assert len(list(connection.download(DownloadRequest(welcome.session_secret, 1, 1)))) == 3
    rig.service.connected["a"].send(Withdrawal(1))
    assert next(session) == Withdrawal(1)


def test_nobody_joins_a_closed_server(rig: Rig) -> None:
    rig.server.close("closed for today")
    if "in-process" in rig.server.address:
        with pytest.raises(Refused, match="closed for today"):
            next(rig.connect().session(Join("a", "1")))
    rig.server.close("twice")


def test_many_clients_at_once(rig: Rig) -> None:
    sessions = [join(rig, f"client-{i}") for i in range(64)]
    threads = [threading.Thread(target=upload, args=(rig, secret)) for secret, _ in sessions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(rig.service.deliveries) == 64
    assert all(delivery.is_committed for delivery in rig.service.deliveries.values())


def test_a_cancelled_join_leaves_no_connected_client(rig: Rig) -> None:
    for number in range(30):
        connection = rig.connect()
        session = connection.session(Join(f"client-{number}", "1"))
        timer = threading.Timer(0.002 * (number % 5), connection.close)
        timer.start()
        with pytest.raises(ConnectionLost):
            list(session)
        timer.join()
    rig.service.wait_until(lambda: not rig.service.connected)


def test_an_assignment_sent_on_connection_comes_after_the_welcome(rig: Rig) -> None:
    client_connected = rig.service.client_connected

    def ask_at_once(client: str, link: ClientLink) -> None:
        client_connected(client, link)
        link.send(TaskAssignment(1, b""))
        link.send(Withdrawal(1))

    rig.service.client_connected = ask_at_once  # type: ignore[method-assign]
    _, session = join(rig)
    assert [next(session), next(session)] == [TaskAssignment(1, b""), Withdrawal(1)]


def test_a_slow_connection_notification_delays_no_connected_client(rig: Rig) -> None:
    secret, _ = join(rig)
    asked, may_go_on, told = threading.Event(), threading.Event(), list[str]()
    client_connected = rig.service.client_connected

    def slow(client: str, link: ClientLink) -> None:
        told.append(client)
        asked.set()
        assert may_go_on.wait(20)
        client_connected(client, link)

    rig.service.client_connected = slow  # type: ignore[method-assign]
    joining = [threading.Thread(target=join, args=(rig, name)) for name in ("b", "c")]
    joining[0].start()
    assert asked.wait(20)
    joining[1].start()
    assert upload(rig, secret) == Receipt(1)
    assert rig.connect().report(Failure(secret, 3, "no data")) == Receipt(3)
    assert told == ["b"], "one at a time"
    may_go_on.set()
    for thread in joining:
        thread.join(20)
    rig.service.wait_until(lambda: told == ["b", "c"])


def test_a_goodbye_says_whether_the_job_failed(rig: Rig) -> None:
    _, session = join(rig)
    rig.server.close("no quorum", failed=True)
    assert list(session) == [Goodbye("no quorum", failed=True)]


@pytest.mark.parametrize(("failed", "kind"), [(False, "over"), (True, "failed")])
def test_a_join_after_the_goodbye_is_told_how_the_job_ended(rig: Rig, failed: bool, kind: str) -> None:
    server = InProcessServer(rig.service)
    server.close("no quorum", failed=failed)
    with pytest.raises(Refused, match="no quorum") as caught:
        next(InProcessConnection(server).session(Join("a", "1")))
    assert caught.value.kind == kind
