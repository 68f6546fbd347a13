"""Windows: pieces under way are shared out, in turn; a silent upload gives way to those that wait."""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import AsyncExitStack

import pytest
from flcore_transport import (
    PIECE_BODY_BYTES,
    WINDOW_PIECES,
    ConnectionLost,
    Fetch,
    GrpcServer,
    Join,
    Layout,
    Offer,
    Outbox,
    Part,
    Receipt,
    Segment,
    TransportError,
    Welcome,
    endpoint,
)
from flcore_transport.windows import Windows

from tests.transport.conftest import MODEL, Pattern, RecordingService, Rig


async def enter(stack: AsyncExitStack, windows: Windows) -> int:
    return (await stack.enter_async_context(windows.window())).pieces


def test_a_transfer_gets_a_quarter_of_what_is_free_and_never_none() -> None:
    async def main() -> list[int]:
        windows = Windows(32)
        async with AsyncExitStack() as stack:
            return [await enter(stack, windows) for _ in range(8)]

    shares = asyncio.run(main())
    assert shares[0] == WINDOW_PIECES and shares[-1] == 1
    assert sum(shares) + len(shares) <= 32 and shares == sorted(shares, reverse=True)


def test_no_more_is_shared_out_than_there_is() -> None:
    async def main() -> None:
        windows = Windows(5)
        async with AsyncExitStack() as stack:
            assert [await enter(stack, windows) for _ in range(2)] == [1, 1]
            third = asyncio.ensure_future(enter(stack, windows))
            await asyncio.sleep(0)
            assert windows.is_contended and not third.done()
            third.cancel()
            await asyncio.sleep(0)
            assert not windows.is_contended

    asyncio.run(main())


def test_who_finds_none_waits_in_line() -> None:
    async def main() -> list[str]:
        windows, order = Windows(4), list[str]()

        async def transfer(name: str, lasts: asyncio.Event) -> None:
            async with windows.window():
                order.append(name)
                await lasts.wait()

        lasting, done = asyncio.Event(), asyncio.Event()
        done.set()
        holders = [asyncio.ensure_future(transfer("held", lasting)) for _ in range(2)]
        await asyncio.sleep(0)
        assert not windows.is_contended
        waiting = [asyncio.ensure_future(transfer(name, done)) for name in ("first", "gone", "last")]
        await asyncio.sleep(0)
        assert windows.is_contended
        waiting[1].cancel()
        lasting.set()
        await asyncio.gather(*holders, waiting[0], waiting[2])
        assert not windows.is_contended
        async with AsyncExitStack() as stack:  # all of it is free again
            assert [await enter(stack, windows) for _ in range(2)] == [1] * 2
        return order

    assert asyncio.run(main()) == [*["held"] * 2, "first", "last"]


def test_a_transfer_that_is_cancelled_just_as_its_turn_comes_gives_it_back() -> None:
    async def main() -> None:
        windows = Windows(4)
        async with AsyncExitStack() as stack:
            for _ in range(2):
                await enter(stack, windows)
            waiting = asyncio.ensure_future(enter(AsyncExitStack(), windows))
            await asyncio.sleep(0)
        waiting.cancel()  # its turn has come, but it has not run since
        await asyncio.wait({waiting})
        async with AsyncExitStack() as stack:
            assert [await enter(stack, windows) for _ in range(2)] == [1] * 2

    asyncio.run(main())


def test_too_few_pieces_are_refused() -> None:
    with pytest.raises(ValueError, match="4 pieces or more, not 3"):
        Windows(3)


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> Iterator[Rig]:
    """A gRPC server with four pieces to share out, whose patience is short."""
    monkeypatch.setattr(endpoint, "PATIENCE_S", 0.2)
    service = RecordingService()
    server = GrpcServer(service, windows_bytes=16 * PIECE_BODY_BYTES)
    rig = Rig(service, server)
    yield rig
    for connection in rig.opened:
        connection.close()
    server.close("the test is over")


def secret_of(rig: Rig, name: str) -> str:
    welcome = next(rig.connect().session(Join(name, "1")))
    assert isinstance(welcome, Welcome)
    return welcome.session


class Stalling(Outbox):
    """Sends one piece, and the next when it is told to."""

    def __init__(self) -> None:
        super().__init__(Pattern())
        self.may_go_on = threading.Event()

    def piece(self, index: int) -> bytes:
        if index:
            assert self.may_go_on.wait(20)
        return super().piece(index)


def test_silent_uploads_give_way_and_go_on_where_they_broke_off(narrow: Rig) -> None:
    silent = [Stalling() for _ in range(4)]
    lost: list[str] = []
    secrets = [secret_of(narrow, f"silent-{number}") for number in range(4)]

    def stall(secret: str, outbox: Stalling) -> None:
        try:
            narrow.connect().upload(Offer(secret, 1, b"", MODEL), outbox)
        except ConnectionLost as error:
            lost.append(str(error))

    threads = [threading.Thread(target=stall, args=pair) for pair in zip(secrets, silent, strict=True)]
    for thread in threads:
        thread.start()
    deliveries = narrow.service.deliveries
    narrow.service.wait_until(lambda: len(deliveries) == 4 and all(d.received == 1 for d in deliveries.values()))
    secret = secret_of(narrow, "lively")
    assert narrow.connect().upload(Offer(secret, 1, b"", MODEL), Outbox(Pattern())) == Receipt(1)
    assert 1 <= len(lost) <= 4, "as many as it took, and only those"
    assert all("others wait: come back and go on" in reason for reason in lost)
    for outbox in silent:
        outbox.may_go_on.set()
    for thread in threads:
        thread.join()
    for number, secret in enumerate(secrets):
        assert narrow.connect().upload(Offer(secret, 1, b"", MODEL), silent[number]) == Receipt(1)
        assert len(deliveries[f"silent-{number}"].bodies) == 4, "no piece came twice"


class Long(Pattern):
    """More pieces than gRPC's buffers take."""

    layout = Layout((Part("model", (Segment("float32", 20_000_000 // 256 * 256),)),))


def test_downloads_that_nobody_reads_give_way_and_go_on(narrow: Rig) -> None:
    narrow.service.source = Long()
    expected = len(Outbox(Long()).plan)
    unread = [narrow.connect().download(Fetch(secret_of(narrow, f"unread-{number}"), 1)) for number in range(4)]
    for pieces in unread:
        next(pieces)
    secret = secret_of(narrow, "lively")
    assert len(list(narrow.connect().download(Fetch(secret, 1)))) == expected
    assert [len(list(pieces)) for pieces in unread] == [expected - 1] * 4


def test_a_session_has_one_call_of_a_kind_and_the_newest_one_counts(narrow: Rig) -> None:
    secret, outbox = secret_of(narrow, "many"), Stalling()
    ended: list[str] = []

    def upload() -> None:
        try:
            narrow.connect().upload(Offer(secret, 1, b"", MODEL), outbox)
        except TransportError as error:
            ended.append(str(error))
            narrow.service.tell()

    threads = [threading.Thread(target=upload) for _ in range(20)]
    for thread in threads:
        thread.start()
    narrow.service.wait_until(lambda: len(ended) == 19)
    other = secret_of(narrow, "other")
    assert narrow.connect().upload(Offer(other, 1, b"", MODEL), Outbox(Pattern())) == Receipt(1)
    assert narrow.connect().upload(Offer(secret, 1, b"", MODEL), Outbox(Pattern())) == Receipt(1)
    outbox.may_go_on.set()
    for thread in threads:
        thread.join()
    assert len(ended) == 20
    assert all("ABORTED: a newer call of this session took its place" in reason for reason in ended)


def test_patience_grows_and_has_an_end() -> None:
    session = endpoint.Session("a", "1", patience_s=2.0)
    for _ in range(40):
        session.be_patient()
    assert session.patience_s == endpoint.MAX_PATIENCE_S


def test_more_downloads_than_windows_all_arrive(narrow: Rig) -> None:
    expected = [Outbox(Pattern()).piece(index) for index in range(4)]
    secrets = [secret_of(narrow, f"client-{number}") for number in range(12)]
    found: list[list[bytes]] = []
    threads = [
        threading.Thread(target=lambda s=secret: found.append(list(narrow.connect().download(Fetch(s, 1)))))
        for secret in secrets
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [expected] * 12
