"""More concurrent transfers than windows: on gRPC and on the in-process twin."""

import threading
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from weakref import WeakSet

import pytest
from flcore_layout import Layout, PayloadPart, Segment
from flcore_transport import ConnectionLost, DownloadRequest, Outbox, Receipt, Refused, TransportError, UploadRequest

from tests.transport.conftest import MODEL, Collected, Pattern, Rig

ALL_STALLING: "WeakSet[Stalling]" = WeakSet()


@pytest.fixture(autouse=True)
def let_go_on() -> Iterator[None]:
    """Leave no thread behind."""
    yield
    for outbox in list(ALL_STALLING):
        outbox.may_go_on.set()


class Stalling(Outbox):
    """Sends one piece, and the next when it is told to."""

    def __init__(self) -> None:
        super().__init__(Pattern())
        self.may_go_on = threading.Event()
        ALL_STALLING.add(self)

    def piece(self, index: int) -> bytes:
        if index:
            assert self.may_go_on.wait(20)
        return super().piece(index)


class Long(Pattern):
    """More pieces than gRPC's buffers take."""

    layout = Layout((PayloadPart("model", (Segment("float32", 20_000_000 // 256 * 256),)),))


LONG_PIECES = len(Outbox(Long()).piece_ranges)


def upload(rig: Rig, secret: str, outbox: Outbox | None = None, assignment_id: int = 1) -> Receipt:
    return rig.connect().upload(UploadRequest(secret, assignment_id, b"", MODEL), outbox or Outbox(Pattern()))


def in_threads(calls: Sequence[Callable[[], object]], errors: list[TransportError], rig: Rig) -> list[threading.Thread]:
    """Make calls at once; what they raise is added to `errors`."""

    def run(call: Callable[[], object]) -> None:
        try:
            call()
        except TransportError as error:
            errors.append(error)
            rig.service.tell()

    threads = [threading.Thread(target=run, args=(call,)) for call in calls]
    for thread in threads:
        thread.start()
    return threads


def ended(threads: list[threading.Thread]) -> bool:
    for thread in threads:
        thread.join(20)
    return not any(thread.is_alive() for thread in threads)


def test_silent_uploads_yield_and_resume_at_the_first_missing_piece(narrow: Rig) -> None:
    silent, errors = [Stalling() for _ in range(4)], list[TransportError]()
    secrets = [narrow.secret_of(f"silent-{number}") for number in range(4)]
    calls = [partial(upload, narrow, secret, outbox) for secret, outbox in zip(secrets, silent, strict=True)]
    threads = in_threads(calls, errors, narrow)
    deliveries = narrow.service.deliveries
    narrow.service.wait_until(lambda: len(deliveries) == 4 and all(d.received == 1 for d in deliveries.values()))
    assert upload(narrow, narrow.secret_of("lively")) == Receipt(1)
    for outbox in silent:
        outbox.may_go_on.set()
    assert ended(threads)
    assert 1 <= len(errors) <= 4, "as many as it took, and only those"
    assert all(isinstance(error, ConnectionLost) and "others wait for its window" in str(error) for error in errors)
    for number, secret in enumerate(secrets):
        assert upload(narrow, secret, silent[number]) == Receipt(1)
        assert len(deliveries[f"silent-{number}"].bodies) == 4, "no piece came twice"


def reading_on(rig: Rig, secret: str, pieces: Iterator[bytes]) -> int:
    """Read the rest of a download of which one piece was read, joining in again where it ends; return the pieces."""
    count = 1
    while count < LONG_PIECES:
        try:
            for _ in pieces:
                count += 1
        except ConnectionLost:
            pieces = rig.connect().download(DownloadRequest(secret, 1, count))
    return count


def test_unread_downloads_yield_and_continue(narrow: Rig) -> None:
    narrow.service.source = Long()
    secrets = [narrow.secret_of(f"unread-{number}") for number in range(4)]
    unread = [narrow.connect().download(DownloadRequest(secret, 1)) for secret in secrets]
    threads = in_threads([partial(next, pieces) for pieces in unread], [], narrow)
    assert len(narrow.fetch(narrow.secret_of("lively"))) == LONG_PIECES
    assert ended(threads)
    assert [reading_on(narrow, *pair) for pair in zip(secrets, unread, strict=True)] == [LONG_PIECES] * 4


def test_a_newer_call_ends_the_older_one_of_its_session_and_direction(narrow: Rig) -> None:
    secret, outbox, errors = narrow.secret_of("many"), Stalling(), list[TransportError]()
    threads = in_threads([partial(upload, narrow, secret, outbox)] * 20, errors, narrow)
    narrow.service.wait_until(lambda: len(narrow.service.contents) == 20)
    if narrow.transport == "grpc":  # in-process, a call ends when its client's code has come back
        narrow.service.wait_until(lambda: len(errors) == 19)
    assert upload(narrow, narrow.secret_of("other")) == Receipt(1)
    assert upload(narrow, secret) == Receipt(1)
    outbox.may_go_on.set()
    assert ended(threads)
    assert len(errors) == 20
    given_way = [error for error in errors if isinstance(error, ConnectionLost)]
    assert len(given_way) <= 1, "the newest of them, which stood still while another client waited"
    assert all(isinstance(error, Refused) and error.kind == "superseded" for error in errors if error not in given_way)


def test_more_downloads_than_windows_all_arrive(narrow: Rig) -> None:
    expected = [Outbox(Pattern()).piece(index) for index in range(4)]
    secrets, found = [narrow.secret_of(f"client-{number}") for number in range(12)], list[list[bytes]]()
    calls = [partial(lambda secret: found.append(narrow.fetch(secret)), secret) for secret in secrets]
    assert ended(in_threads(calls, [], narrow))
    assert found == [expected] * 12


def test_cancelling_an_assignment_ends_its_transfers_and_frees_their_windows(patient: Rig) -> None:
    patient.service.source = Long()
    uploading, errors = Stalling(), list[TransportError]()
    threads = in_threads([partial(upload, patient, patient.secret_of("sends"), uploading)], errors, patient)
    pieces = patient.connect().download(DownloadRequest(patient.secret_of("reads"), 1))
    next(pieces)  # and nothing more is read: both hold a window now, and there are no more
    patient.service.wait_until(lambda: "sends" in patient.service.deliveries)
    for client in ("sends", "reads"):
        patient.service.connected[client].cancel_transfers(2)
        patient.service.connected[client].cancel_transfers(1)
    for client in ("lively", "livelier"):
        others = [partial(upload, patient, patient.secret_of(client), Stalling())]
        threads += in_threads(others, [], patient)
    patient.service.wait_until(lambda: has_a_piece(patient, "lively") and has_a_piece(patient, "livelier"))
    uploading.may_go_on.set()
    assert ended(threads[:1])
    assert isinstance(errors[0], Refused) and errors[0].kind == "cut"
    assert patient.service.deliveries["sends"].has_ended
    with pytest.raises(TransportError):
        for _ in pieces:
            pass


def has_a_piece(rig: Rig, client: str) -> bool:
    return client in rig.service.deliveries and rig.service.deliveries[client].received > 0


def one_that_waits_in_line(patient: Rig) -> tuple[list[Stalling], list[TransportError], list[threading.Thread]]:
    """Have two uploads hold all windows, and one wait; return the two, what the one raises, and all threads."""
    holding, errors = [Stalling(), Stalling()], list[TransportError]()
    calls = [partial(upload, patient, patient.secret_of(f"holds-{n}"), outbox) for n, outbox in enumerate(holding)]
    threads = in_threads(calls, [], patient)
    patient.service.wait_until(lambda: has_a_piece(patient, "holds-0") and has_a_piece(patient, "holds-1"))
    threads += in_threads([partial(upload, patient, patient.secret_of("waits"))], errors, patient)
    patient.service.wait_until(lambda: "waits" in patient.service.deliveries)
    return holding, errors, threads


def test_cancelling_ends_a_queued_call(patient: Rig) -> None:
    holding, errors, threads = one_that_waits_in_line(patient)
    patient.service.connected["waits"].cancel_transfers(1)
    patient.service.wait_until(lambda: bool(errors))
    assert isinstance(errors[0], Refused) and errors[0].kind == "cut"
    for outbox in holding:
        outbox.may_go_on.set()
    assert ended(threads)


def test_a_closed_connection_ends_its_queued_call(patient: Rig) -> None:
    holding, errors, threads = one_that_waits_in_line(patient)
    patient.opened[-1].close()
    patient.service.wait_until(lambda: bool(errors))
    assert isinstance(errors[0], ConnectionLost)
    for outbox in holding:
        outbox.may_go_on.set()
    assert ended(threads)


def test_a_call_cancelled_while_it_accepts_a_piece_ends_before_it_requests_the_next(patient: Rig) -> None:
    """In-process, it would keep its window for as long as its client's code takes."""
    secret, outbox, errors = patient.secret_of("a"), Stalling(), list[TransportError]()
    delivered = patient.service.begin_upload

    def answer(client: str, assignment_id: int, token: bytes, content: bytes, layout: Layout) -> Collected:
        delivery = delivered(client, assignment_id, token, content, layout)
        delivery.tell = lambda: patient.service.connected["a"].cancel_transfers(1)
        return delivery

    patient.service.begin_upload = answer  # type: ignore[method-assign]
    assert ended(in_threads([partial(upload, patient, secret, outbox)], errors, patient))
    assert isinstance(errors[0], Refused) and errors[0].kind == "cut"
    assert not outbox.may_go_on.is_set()
