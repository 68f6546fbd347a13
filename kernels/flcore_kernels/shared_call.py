"""One call whose batches several threads work on, and a wait for its end that no exception gets out of.

A thread that helps with a call may still write to the caller's arrays, so the caller must not go on before the last
helper has left. Python runs signal handlers in the main thread between bytecodes, and a second Ctrl-C gets out of any
wait that is written in Python. `SharedCall.close` is therefore one call of a C function that knows nothing of signals:
it takes the write side of a POSIX read-write lock, whose read side each helper holds while it works. Once it is taken,
no helper can begin.
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
"""Whether a caller can wait for helpers. Without it no thread helps."""

_GATE_WORDS = 32
"""256 bytes: `pthread_rwlock_t` has 56 on Linux and 200 on macOS."""


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
    """A gate that closes when the process begins to end: no other thread is within it then, and none gets in any more.

    The interpreter frees what threads hold, their scratch memory for one, while threads in compiled code still run.
    Only threads other than the main one pass it: a signal handler could keep the main one from leaving.
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
        """Hold the end of the process up while the block lasts; never returns once the process has begun to end."""
        if threading.get_ident() == threading.main_thread().ident:
            yield
            return
        if self._forever is not None:  # the read-write lock alone would let readers in while there are others
            self._forever.acquire()
        _read(self._gate)
        try:
            yield
        finally:
            _leave(self._gate)


class SharedCall:
    """Calls `work` for the batches 0 to `batches` - 1: the caller takes its share, and so does each helper.

    `close()` waits until the last helper has left, and lets none begin from then on. It is a C function. The caller has
    it as the first thing in a `finally`: CPython runs signal handlers at the beginning of a function, at a jump
    backwards and after a call, so none runs between the `try` block and the wait.
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
        failures, self._failures = self._failures, []  # an error refers to frames, and these to this call
        results, self._results = self._results, {}
        del self._work  # a helper lets go of this call late, or finds it late; the arrays must not wait for that
        if failures:
            raise failures.pop(0)
        return [results[batch] for batch in range(self._batches)]
