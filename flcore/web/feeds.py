"""The newest state of what people watch. One thread makes it, and all streams of the page read it.

A stream that is slow misses states, and never the newest one. Without streams the thread sleeps.
"""

import asyncio
import logging
import threading
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import suppress

from flcore.web.sources import Source
from flcore.web.views import job_view, overview, to_bytes

logger = logging.getLogger(__name__)

INTERVAL_S = 0.5
"""The shortest time between two states of a topic."""

MAX_SHARE = 0.005
"""The largest share of its thread's time that the states take: many clients are told of less often."""

KEEP_ALIVE_S = 15.0
"""A stream without news sends a comment after this time, which ends it if its reader has gone."""

ERROR_DELAY_S = 5.0
"""The time until the next attempt after an error, such as one of the disk."""

CLOSE_TIMEOUT_S = 2.0


class _Feed:
    """The newest state of a topic, in the event loop's thread."""

    def __init__(self) -> None:
        self.message, self.number, self.readers = b"", 0, 0
        self.changed = asyncio.Event()

    def publish(self, message: bytes) -> None:
        if message != self.message:
            self.message, self.number = message, self.number + 1
            self.wake()

    def wake(self) -> None:
        changed, self.changed = self.changed, asyncio.Event()
        changed.set()


class Feeds:
    """Streams of the states of a source. A topic is the key of a job.

    Call `start` before, and `close` after the event loop serves.

    Args:
        source: The jobs.
    """

    def __init__(self, source: Source) -> None:
        self._source = source
        self._feeds: dict[str, _Feed] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._is_over = False  # in the event loop's thread: the last states are published
        self._is_watched, self._closing = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._make_states, name="flcore-web-states", daemon=True)

    def start(self) -> None:
        """Start the thread that makes the states."""
        self._thread.start()

    def close(self) -> None:
        """Give all streams the last state, and end them."""
        self._closing.set()
        self._is_watched.set()
        self._source.close()
        self._thread.join(CLOSE_TIMEOUT_S)
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._end_all)

    def state(self, topic: str) -> bytes:
        """Return the jobs in short, and the job that is the topic, as a message of a stream. May take a while."""
        values = overview(self._source) | {"job": job_view(self._source, topic) if topic else None}
        return b"data: " + to_bytes(values) + b"\n\n"

    async def messages(self, topic: str, first: Callable[[], Awaitable[bytes]]) -> AsyncGenerator[bytes]:
        """Yield the state of a topic that `first` makes, then each newer one, until `close`. For the event loop."""
        self._loop = asyncio.get_running_loop()
        feed = self._feeds.setdefault(topic, _Feed())
        feed.readers += 1
        self._is_watched.set()
        try:
            seen = feed.number  # before the first state is made: no change after it is missed
            yield await first()
            while not (self._is_over and feed.number == seen):
                changed = feed.changed
                if feed.number != seen:
                    seen = feed.number
                    yield feed.message
                    continue
                try:
                    await asyncio.wait_for(changed.wait(), KEEP_ALIVE_S)
                except TimeoutError:
                    yield b": alive\n\n"
        finally:
            feed.readers -= 1
            if not feed.readers:
                self._feeds.pop(topic, None)
            if not self._feeds:
                self._is_watched.clear()
                if self._closing.is_set():  # after the clear: `close` may have set it just before
                    self._is_watched.set()

    def _make_states(self) -> None:
        version, has_failed = "", False
        while not self._closing.is_set():
            self._is_watched.wait()
            began, error = time.thread_time(), None
            try:
                found = self._source.wait(version)
                error = self._publish_all()
                version = found if error is None else version  # with the old one, the next wait returns at once
            except Exception as raised:  # noqa: BLE001 - whatever the source raises ends no page
                error = raised
            if error is not None and not has_failed:
                text = "the page's state could not be made; the page shows the last one, and tries again"
                logger.error(text, exc_info=error)
            has_failed = error is not None
            pause_s = (time.thread_time() - began) / MAX_SHARE
            self._closing.wait(max(ERROR_DELAY_S if has_failed else INTERVAL_S, pause_s))
        with suppress(Exception):
            self._publish_all()

    def _publish_all(self) -> Exception | None:
        """Publish the state of each topic that is watched. Returns the first error; the other topics go on."""
        first = None
        for topic, feed in list(self._feeds.items()):
            try:
                state = self.state(topic)
            except Exception as error:  # noqa: BLE001 - whatever the source raises for one topic
                first = first or error
                continue
            if self._loop is not None:
                self._loop.call_soon_threadsafe(feed.publish, state)
        return first

    def _end_all(self) -> None:
        self._is_over = True
        for feed in self._feeds.values():
            feed.wake()
