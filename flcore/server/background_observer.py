"""An observer with a queue and a thread of its own: for what does I/O, and must neither slow nor stop a run.

The queue is bounded. An event that comes while it is full is dropped and counted. An error of the handler is counted
too, and ends nothing. The first drop and the first error are logged, in one line each; the end of a run logs how many
there were. Threads of handlers that never return are bounded as well (`LeftAlone`).
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Generic, Self, TypeVar

from flcore.server.events import Event
from flcore.text import printable

logger = logging.getLogger(__name__)

MAX_QUEUED_EVENTS = 1_000
"""The most events that wait for the handler."""

CLOSE_TIMEOUT_S = 10.0
"""How long the end of a run waits for the handler."""

MAX_LEFT_ALONE = 4
"""The most threads of runs that are over in which the same handler still hangs."""

MAX_ERROR_CHARACTERS = 500

Item = TypeVar("Item")


class LeftAlone:
    """The threads of a handler that did not end with their runs. Thread-safe.

    A handler that never returns would else leave one thread for each run of a standing server.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._threads: list[threading.Thread] = []

    def is_full(self) -> bool:
        """Whether `MAX_LEFT_ALONE` of them still hang."""
        with self._lock:
            self._threads = [thread for thread in self._threads if thread.is_alive()]
            return len(self._threads) >= MAX_LEFT_ALONE

    def add(self, thread: threading.Thread) -> None:
        """Keep a thread that did not end."""
        with self._lock:
            self._threads.append(thread)


class BackgroundObserver(Generic[Item]):
    """Passes events to a handler on a thread of its own. A context manager.

    Args:
        name: The name of what handles the events, for the log.
        select: Returns what the handler gets of an event; None for an event that it does not get. Called at once, on
            the thread of the event. Must be quick and not raise.
        handle: The handler. It may block and raise.
        max_events: The most events that wait. Default: `MAX_QUEUED_EVENTS`.
        close_timeout_s: How long the end of the block waits for the handler. Default: `CLOSE_TIMEOUT_S`. A handler that
            takes longer is left alone with its thread, which does not keep the process alive.
        left_alone: The threads of the same handler that earlier runs have left alone. If it is full, all events are
            dropped. Default: None, they are not counted.

    Attributes:
        dropped: The number of events that were dropped.
        failed: The number of events at which the handler has raised.
    """

    def __init__(
        self,
        name: str,
        select: Callable[[Event], Item | None],
        handle: Callable[[Item], None],
        *,
        max_events: int = MAX_QUEUED_EVENTS,
        close_timeout_s: float | None = None,
        left_alone: LeftAlone | None = None,
    ) -> None:
        self._name, self._select, self._handle = name, select, handle
        self._max_events = max_events
        self._close_timeout_s = CLOSE_TIMEOUT_S if close_timeout_s is None else close_timeout_s
        self._left_alone = LeftAlone() if left_alone is None else left_alone
        self._items: deque[Item] = deque()
        self._changed = threading.Condition()
        self._is_closing = self._is_over = False
        self.dropped = self.failed = 0
        self._thread = threading.Thread(target=self._handle_all, name=f"flcore-{name}", daemon=True)

    def observe(self, event: Event) -> None:
        """Queue an event, or drop it. An observer of a server."""
        item = self._select(event)
        if item is None:
            return
        with self._changed:
            is_first_drop = False
            if len(self._items) < self._max_events and not self._is_over:
                self._items.append(item)
                self._changed.notify()
            else:
                is_first_drop = self.dropped == 0 and not self._is_over
                self.dropped += 1
        if is_first_drop:
            logger.warning("%s is slower than the run: events are left out from now on", self._name)

    def __enter__(self) -> Self:
        if self._left_alone.is_full():
            self._is_over = True
            text = "%s still hangs in %d earlier runs, and gets nothing of this one; start the server again"
            logger.warning(text, self._name, MAX_LEFT_ALONE)
        else:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.begin_close()
        self.close(time.monotonic() + self._close_timeout_s)

    def begin_close(self) -> None:
        """Tell the thread to end after the events that wait. Returns at once."""
        with self._changed:
            self._is_closing = True
            self._changed.notify()

    def close(self, until_s: float) -> None:
        """Wait until the thread has ended, or until a moment of `time.monotonic`. Drops what still waits then."""
        if self._thread.ident is not None:  # else it was not started
            self._thread.join(max(0.0, until_s - time.monotonic()))
        with self._changed:
            self._is_over = True
            self.dropped += len(self._items)
            self._items.clear()
        if self._thread.is_alive():
            self._left_alone.add(self._thread)
            logger.warning("%s did not end in time, and is left alone", self._name)
        if self.dropped or self.failed:
            logger.warning("%s: %d events were left out, %d failed", self._name, self.dropped, self.failed)

    def _handle_all(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._items or self._is_closing)
                if not self._items:
                    return
                item = self._items.popleft()
            try:
                self._handle(item)
            # A package may also raise what is no `Exception`: SystemExit, or a panic of an extension in Rust.
            except BaseException as error:  # noqa: BLE001 - none of them ends the thread, nor a run
                self.failed += 1
                if self.failed == 1:
                    text = printable(f"{type(error).__name__}: {error}", MAX_ERROR_CHARACTERS)
                    logger.warning("%s failed, and the run goes on: %s", self._name, text)
