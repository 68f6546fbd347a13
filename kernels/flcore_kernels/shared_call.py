"""One call whose batches several threads work on, and a wait for its end that no exception interrupts.

A helping thread may still write to the caller's arrays, so the caller must not return before the last helper has left.
Python runs signal handlers in the main thread between bytecodes, and a second Ctrl-C interrupts any wait that is
written in Python. `SharedCall.close` is therefore one call of a C function without signal handling: it takes the write
side of a POSIX read-write lock, whose read side each helper holds while it works. Once it is taken, no helper can
begin.
"""

import atexit
import ctypes
import os
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

HAS_GATES = os.name == "posix"
"""Whether there are POSIX read-write locks to wait for helpers with. If not, the caller's thread works alone."""

_GATE_WORDS = 32
"""256 bytes, more than any `pthread_rwlock_t`: 56 bytes on Linux, 200 on macOS."""


def _posix(name: str, arguments: int) -> Callable[..., int]:
    """Return a function of the C library that takes pointers; it runs without the interpreter's lock."""
    if not HAS_GATES:
        return lambda *_: 1
    function = getattr(ctypes.CDLL(None), name)
    function.argtypes, function.restype = [ctypes.c_void_p] * arguments, ctypes.c_int
    return function  # type: ignore[no-any-return]


_make = _posix("pthread_rwlock_init", 2)
_read = _posix("pthread_rwlock_rdlock", 1)
_try_to_read = _posix("pthread_rwlock_tryrdlock", 1)
_leave = _posix("pthread_rwlock_unlock", 1)
_write = _posix("pthread_rwlock_wrlock", 1)


class ExitGate:
    """A gate around compiled code that closes when the process begins to exit.

    It waits until no thread is within it, and lets none in any more. Without it, the interpreter would free the
    threads' scratch memory while compiled code still writes to it. The main thread does not pass the gate: a signal
    handler could keep it from leaving.
    """

    def __init__(self) -> None:
        self._make()
        atexit.register(self._close)
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._make)  # the threads within it did not come along

    def _make(self) -> None:
        self._gate = (ctypes.c_uint64 * _GATE_WORDS)()
        _make(self._gate, None)
        self._forever: threading.Lock | None = None

    def _close(self) -> None:
        forever = threading.Lock()
        forever.acquire()
        self._forever = forever
        _write(self._gate)

    @contextmanager
    def within(self) -> Iterator[None]:
        """Delay the process's exit while the block lasts. Blocks for ever once the process has begun to exit."""
        if threading.get_ident() == threading.main_thread().ident:
            yield
            return
        if self._forever is not None:  # the lock alone would let readers in as long as others hold its read side
            self._forever.acquire()
        _read(self._gate)
        try:
            yield
        finally:
            _leave(self._gate)


class SharedCall:
    """Calls `work` for the batches 0 to `batches` - 1, on the caller's thread and on helpers.

    `close()` waits until the last helper has left, and lets none begin from then on. It is a C function, and must be
    the first statement of a `finally`: CPython runs signal handlers at the beginning of a function, at a backward jump
    and after a call, so none runs between the `try` block and the wait.
    """

    def __init__(self, work: Callable[[int], Any], batches: int) -> None:
        self._work, self._batches = work, batches
        self._numbers = iter(range(batches))  # hands each number out once, whichever thread asks
        self._results: dict[int, Any] = {}
        self._failures: list[BaseException] = []
        self._gate = (ctypes.c_uint64 * _GATE_WORDS)()
        _make(self._gate, None)
        self.close: Callable[[], int] = partial(_write, self._gate)

    def share(self) -> None:
        """Work on batches until none is left."""
        for batch in self._numbers:
            self._results[batch] = self._work(batch)

    def help(self) -> None:
        """Take a share, unless the call has ended."""
        if _try_to_read(self._gate) != 0:
            return
        try:
            self.share()
        except BaseException as error:  # noqa: BLE001 - the caller raises it
            self._failures.append(error)
            self.stop()
        finally:
            _leave(self._gate)

    def stop(self) -> None:
        """Hand out no more batches."""
        deque(self._numbers, maxlen=0)

    def results(self) -> list[Any]:
        """Return what `work` returned, in the order of the batches, or raise what it raised for a helper."""
        failures, self._failures = self._failures, []  # breaks a cycle: an error's frames refer to this call
        results, self._results = self._results, {}
        del self._work  # it refers to the caller's arrays, and a helper may keep this call for longer
        if failures:
            raise failures.pop(0)
        return [results[batch] for batch in range(self._batches)]
