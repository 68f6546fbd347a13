"""What a flood of requests, and what an error, cost: the page takes its share of a core, and each topic goes on."""

import asyncio
import socket
import threading
import time
from contextlib import ExitStack

import pytest

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")

from flcore.server.events import ClientJoined
from flcore.status.job_status import JobStatus
from flcore.web import RunSource, WebServer, app, feeds, server
from flcore.web.feeds import Feeds
from flcore.web.share import Share
from tests.flcore.web.small_client import PageClient, until
from tests.flcore.web.synthetic_job import SyntheticJob, large_job

MEASURED_S = 3.0
STREAM = b"GET /api/events?job=chest-xray HTTP/1.1\r\nHost: localhost\r\n\r\n"


def test_a_share_gives_its_burst_at_once_and_then_waits_for_its_part() -> None:
    share, began_s = Share(0.5, burst_s=0.1), time.monotonic()
    share.spend(0.2)
    share.wait()
    assert time.monotonic() - began_s >= 0.19
    share.spend(1e9)
    threading.Timer(0.05, share.lift).start()
    share.wait()


def other_threads_s() -> float:
    """Return the processor's time of all threads but this one."""
    return time.process_time() - time.thread_time()


def most_of_a_core() -> float:
    """Return the bound of a test: the page's shares, and some time for what had begun when they were spent."""
    shares = server.MAX_LOOP_SHARE + server.MAX_WORK_SHARE + feeds.MAX_SHARE
    assert shares < 0.05
    return shares + 0.15


@pytest.mark.parametrize("path", ["/api/jobs/chest-xray/rounds", "/icon.svg"])
def test_a_flood_of_requests_takes_a_bounded_share_of_a_core(monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    """A flood of `rounds` halved the rate of a busy main thread."""
    monkeypatch.setattr(server, "BURST_S", 0.01)
    job = large_job()
    with (
        WebServer(RunSource(job.board, job.contract, None)) as page_server,
        socket.create_connection(PageClient(page_server.url).place, 60) as flood,
    ):
        requests, used_s, began_s = 0, other_threads_s(), time.monotonic()
        while time.monotonic() - began_s < MEASURED_S:
            flood.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
            head, _, body = flood.recv(1 << 16).partition(b"\r\n\r\n")
            [length] = [int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
            while len(body) < length:
                body += flood.recv(1 << 16)
            requests += 1
        share = (other_threads_s() - used_s) / (time.monotonic() - began_s)
    assert requests > 1 and share < most_of_a_core()


def test_two_hundred_open_pages_take_a_bounded_share_of_a_core(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those beyond the bounds are refused, and the job changes all the time."""
    monkeypatch.setattr(server, "BURST_S", 0.1)
    job = SyntheticJob()
    with WebServer(RunSource(job.board, job.contract, None)) as page_server, ExitStack() as stack:
        place = PageClient(page_server.url).place
        pages = [stack.enter_context(socket.create_connection(place, 60)) for _ in range(200)]
        answers = [answer_of(page) for page in pages]
        assert answers.count(b"200") == app.MAX_STREAMS and set(answers) <= {b"200", b"503", b""}
        streams = [page for page, answer in zip(pages, answers, strict=True) if answer == b"200"]
        for stream in streams:
            stream.setblocking(False)
        used_s, began_s = other_threads_s(), time.monotonic()
        while time.monotonic() - began_s < MEASURED_S:
            job.tell(ClientJoined("again", int(time.monotonic() * 1000)))
            for stream in streams:
                while received(stream):
                    pass
            time.sleep(0.02)
        share = (other_threads_s() - used_s) / (time.monotonic() - began_s)
    assert share < most_of_a_core()


def answer_of(page: socket.socket) -> bytes:
    """Ask for a stream. Returns the status, or nothing where the server has closed."""
    try:
        page.sendall(STREAM)
        return b"".join(page.recv(4096).split()[1:2])
    except OSError:
        return b""


def received(stream: socket.socket) -> bytes:
    try:
        return stream.recv(1 << 20)
    except BlockingIOError:
        return b""


class BrokenTopic(RunSource):
    """A source that raises for one topic, as long as it is broken."""

    is_broken = True

    def job(self, key: str) -> JobStatus | None:
        if key == "broken" and self.is_broken:
            raise OSError("the disk is gone")
        return self._board.snapshot()


def test_a_topic_that_raises_does_not_stop_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feeds, "ERROR_DELAY_S", 0.05)
    job = SyntheticJob()
    source = BrokenTopic(job.board, job.contract, None)
    source.is_broken = False
    with WebServer(source) as page_server:
        page = PageClient(page_server.url)
        with page.states("broken") as broken, page.states("chest-xray") as good:  # the broken one comes first
            next(broken), next(good)
            source.is_broken = True
            job.tell(ClientJoined("late", 40))
            assert until(good, lambda state: state["job"]["connected"] == 40)
            source.is_broken = False
            # Without another change of the job: what failed is made again.
            assert until(broken, lambda state: state["job"]["connected"] == 40)


def test_a_last_reader_that_goes_while_the_page_closes_does_not_keep_its_thread() -> None:
    """`close` came between the reader's look at it and the reader's `clear`: the thread then slept for good."""
    job = SyntheticJob()
    feed = Feeds(RunSource(job.board, job.contract, None))
    closing = threading.Thread(target=feed.close)

    class ClosedAtClear(threading.Event):
        def clear(self) -> None:
            if closing.ident is None:
                closing.start()
                assert feed._closing.wait(60)
                assert self.wait(60)
            super().clear()

    feed._is_watched = ClosedAtClear()
    feed.start()

    async def leave() -> None:
        async def first() -> bytes:
            return feed.state("")

        messages = feed.messages("", first)
        await anext(messages)
        await messages.aclose()

    asyncio.run(leave())
    closing.join(60)
    assert not feed._thread.is_alive()
