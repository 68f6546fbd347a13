"""Work on a thread of its own: folds in the background, and reading ahead.

`concurrent.futures` and `threading.Thread` would do, but for Ctrl-C: an interrupt in the middle of their Python code
leaves a thread that the end of the process waits for, or a lock that nobody releases. So threads are started by one
call, nobody waits for them to end, and what is waited for is a lock alone.
"""

import threading
from _thread import start_new_thread
from collections.abc import Callable, Iterable, Iterator
from queue import SimpleQueue
from typing import Any, Generic, TypeVar
from weakref import finalize

A = TypeVar("A")
B = TypeVar("B")


class BackgroundCall(Generic[B]):
    """What some work returns or raises, once it is done."""

    def __init__(self, work: Callable[[], B]) -> None:
        self._work: Callable[[], B] | None = work
        self._value: list[B] = []
        self._error: BaseException | None = None
        self._running = threading.Lock()
        self._running.acquire()

    def run(self) -> None:
        """Do the work."""
        try:
            if self._work is not None:
                self._value.append(self._work())
        except BaseException as error:  # noqa: BLE001 - `result` raises it
            self._error = error
        finally:
            self._work = None  # which may hold arrays
            self._running.release()

    def wait(self) -> None:
        """Wait until it is done."""
        with self._running:
            pass

    def result(self) -> B:
        """Return what the work returned, or raise what it raised, once it is done."""
        self.wait()
        if self._error is not None:
            raise self._error
        return self._value[0]


class BackgroundThread:
    """One thread that runs calls, first in, first out. It ends with this object."""

    def __init__(self) -> None:
        self._queue: SimpleQueue[BackgroundCall[Any] | None] = SimpleQueue()
        self._turn, self._has_begun = threading.Lock(), False
        finalize(self, self._queue.put, None).atexit = False

    def submit(self, work: Callable[[], B]) -> BackgroundCall[B]:
        """Have some work done."""
        call = BackgroundCall(work)
        self._queue.put(call)
        if not self._has_begun:
            start_new_thread(_run_calls, (self._queue, self._turn))
            self._has_begun = True
        return call

    def close(self) -> None:
        """Do nothing more after what has come."""
        self._queue.put(None)


def _run_calls(queue: "SimpleQueue[BackgroundCall[Any] | None]", turn: threading.Lock) -> None:
    """Do what comes, one after the other, also where an interrupt has led to a second thread."""
    while (call := queue.get()) is not None:
        with turn:
            call.run()
        del call


def prefetch(fetch: Callable[[A], B], items: Iterable[A]) -> Iterator[tuple[A, B]]:
    """Yield each item with what `fetch` returns for it; the next one is fetched meanwhile, on a thread of its own.

    >>> list(prefetch(str, [1, 2]))
    [(1, '1'), (2, '2')]
    """
    thread = BackgroundThread()
    waiting: list[tuple[A, BackgroundCall[B]]] = []
    try:
        for item in items:
            waiting.append((item, thread.submit(lambda item=item: fetch(item))))  # type: ignore[misc]
            if len(waiting) == 2:
                before, call = waiting.pop(0)
                yield before, call.result()
                del call  # it holds what was fetched
        for item, call in waiting:
            yield item, call.result()
    finally:
        thread.close()
        for _, call in waiting:
            call.wait()  # nothing is read any more once this has ended
