"""Background threads: for folds, and for reading ahead.

`concurrent.futures` and `threading.Thread` are not safe with Ctrl-C: an interrupt in their Python code leaves a thread
that the exit of the process waits for, or a lock that is never released. Here, one C call starts a thread, nothing
waits for its end, and a result is waited for with a bare lock.
"""

import threading
from _thread import start_new_thread
from collections.abc import Callable, Iterable, Iterator
from queue import SimpleQueue
from typing import Any, Generic, TypeVar
from weakref import finalize

Item = TypeVar("Item")
Result = TypeVar("Result")


class BackgroundCall(Generic[Result]):
    """A call that a background thread runs, and its result. A `Future` with a bare lock."""

    def __init__(self, work: Callable[[], Result]) -> None:
        self._work: Callable[[], Result] | None = work
        self._value: list[Result] = []
        self._error: BaseException | None = None
        self._running = threading.Lock()
        self._running.acquire()

    def run(self) -> None:
        """Run the call. Its result or exception is kept for `result`."""
        try:
            if self._work is not None:
                self._value.append(self._work())
        except BaseException as error:  # noqa: BLE001 - `result` raises it
            self._error = error
        finally:
            self._work = None  # it may reference arrays
            self._running.release()

    def wait(self) -> None:
        """Wait until the call has ended."""
        with self._running:
            pass

    def result(self) -> Result:
        """Wait for the call, and return its result or raise its exception."""
        self.wait()
        if self._error is not None:
            raise self._error
        return self._value[0]


class BackgroundThread:
    """One thread that runs calls, first in, first out. It ends when this object is freed."""

    def __init__(self) -> None:
        self._queue: SimpleQueue[BackgroundCall[Any] | None] = SimpleQueue()
        self._turn, self._has_begun = threading.Lock(), False
        finalize(self, self._queue.put, None).atexit = False

    def submit(self, work: Callable[[], Result]) -> BackgroundCall[Result]:
        """Queue a call. The first one starts the thread."""
        call = BackgroundCall(work)
        self._queue.put(call)
        # An interrupt between these lines starts a second thread later. `_turn` keeps calls one at a time then.
        if not self._has_begun:
            start_new_thread(_run_calls, (self._queue, self._turn))
            self._has_begun = True
        return call

    def close(self) -> None:
        """End the thread after the queued calls."""
        self._queue.put(None)


def _run_calls(queue: "SimpleQueue[BackgroundCall[Any] | None]", turn: threading.Lock) -> None:
    """Run queued calls, one at a time, until `close`."""
    while (call := queue.get()) is not None:
        with turn:
            call.run()
        del call  # `queue.get` may wait long, and a result may be large


def prefetch(fetch: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[tuple[Item, Result]]:
    """Yield each item with the result of `fetch` for it. A background thread fetches the next one meanwhile.

    At most two results are alive: the one that was yielded and the next one.

    >>> list(prefetch(str, [1, 2]))
    [(1, '1'), (2, '2')]
    """
    thread = BackgroundThread()
    waiting: list[tuple[Item, BackgroundCall[Result]]] = []
    try:
        for item in items:
            waiting.append((item, thread.submit(lambda item=item: fetch(item))))  # type: ignore[misc]
            if len(waiting) == 2:
                before, call = waiting.pop(0)
                yield before, call.result()
                del call  # it references the result
        for item, call in waiting:
            yield item, call.result()
    finally:
        thread.close()
        for _, call in waiting:
            call.wait()  # when this generator ends, no thread reads
