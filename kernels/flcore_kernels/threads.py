"""A pool of threads that run compiled loops, which release the interpreter's lock.

A call has numbered batches that any thread may take; the caller's thread takes its share. No result depends on the
number of threads. (Numba's own threads are not used: its default threading layer ends the process when two threads call
it at once.)

A call returns or raises only after the last thread has left its work (see `shared_call`), so its buffers can be freed
then, also after Ctrl-C.
"""

import os
import threading
from _thread import start_new_thread
from collections.abc import Callable
from functools import cache
from pathlib import Path
from queue import SimpleQueue
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from flcore_kernels.errors import KernelError
from flcore_kernels.shared_call import HAS_GATES, ExitGate, SharedCall

Result = TypeVar("Result")

_exit = ExitGate()
_local = threading.local()
THREADS_VARIABLE = "FLCORE_THREADS"

SCRATCH_ALIGNMENT = 64
"""Bytes of a cache line."""


def available_cores(cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """Return how many cores this process may use: its affinity, and its control group's quota rounded up."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(cores, _quota(cgroup) or cores))


def _quota(cgroup: Path) -> int | None:
    """Return the cores that control group version 2 or 1 grants; None for no limit."""
    try:
        limit, period = (cgroup / "cpu.max").read_text(encoding="ascii").split()
    except (OSError, ValueError):
        try:
            limit = (cgroup / "cpu/cpu.cfs_quota_us").read_text(encoding="ascii").strip()
            period = (cgroup / "cpu/cpu.cfs_period_us").read_text(encoding="ascii").strip()
        except (OSError, ValueError):
            return None
    if not (limit.isdigit() and period.isdigit() and int(period) > 0):
        return None
    return -(-int(limit) // int(period))


def thread_count(asked: int | None) -> int:
    """Return `asked`, or else `FLCORE_THREADS`, or else the number of available cores."""
    if asked is None:
        given = os.environ.get(THREADS_VARIABLE, "")
        if not given:
            return available_cores()
        if not given.isdecimal():
            raise KernelError(f"expected a whole number of threads, at least 1, in {THREADS_VARIABLE}, got {given!r}")
        asked = int(given)
    if asked < 1:
        raise KernelError(f"expected at least 1 thread, got {asked}")
    return asked


class Pool:
    """Threads that share batches of work. They start with the first call, and anew in a forked process."""

    def __init__(self, threads: int | None = None) -> None:
        self.threads = thread_count(threads) if HAS_GATES else 1
        self._forget()

    def run(self, work: Callable[[int], Result], batches: int) -> list[Result]:
        """Call `work` with every batch number, and return the results in order. Any thread may call."""
        with _exit.within():
            return self._run(work, batches)

    def _run(self, work: Callable[[int], Result], batches: int) -> list[Result]:
        if batches <= 1 or self.threads == 1:
            return [work(batch) for batch in range(batches)]
        call, helpers = SharedCall(work, batches), min(self.threads, batches) - 1
        calls = self._ready(helpers)
        try:
            for _ in range(helpers):
                calls.put(call)
            call.share()
        except BaseException:
            call.stop()
            raise
        finally:
            call.close()  # nothing that runs Python code may stand before this (see `SharedCall.close`)
        return call.results()

    def run_aside(self, work: Callable[[], Result]) -> Result:
        """Return the result of `work`. In the main thread, where signals could interrupt it, another thread runs it."""
        if threading.get_ident() != threading.main_thread().ident or not HAS_GATES:
            return work()
        ended = threading.Lock()
        ended.acquire()

        def work_and_release(_: int) -> Result:
            try:
                return work()
            finally:
                ended.release()

        call = SharedCall(work_and_release, 1)
        calls = self._ready(self.threads)  # one more than `run` needs: the work itself may share out batches
        try:
            calls.put(call)
            ended.acquire()
        finally:
            call.close()  # as in `run`
        return call.results()[0]  # type: ignore[no-any-return]

    def _ready(self, helpers: int) -> "SimpleQueue[SharedCall]":
        """Return the queue of calls, with at least `helpers` threads that take calls from it."""
        if self._process != os.getpid():  # forked: the threads are gone, and a copy of the lock may be held for ever
            self._forget()
        with self._lock:
            while self._helpers < helpers:  # one C call, because Ctrl-C within `Thread.start` can leave a lock held
                start_new_thread(_help, (self._calls,))
                self._helpers += 1
        return self._calls

    def _forget(self) -> None:
        self._process, self._lock = os.getpid(), threading.Lock()
        self._helpers = 0
        self._calls: SimpleQueue[SharedCall] = SimpleQueue()


@cache
def shared_pool(threads: int | None) -> Pool:
    """Return the pool of all calls of functions with this number of threads (backends have pools of their own)."""
    return Pool(threads)


def scratch(nbytes: int) -> np.uint64:
    """Return the address of this thread's scratch memory, at a multiple of 64. It grows as needed."""
    held: npt.NDArray[np.uint8] | None = getattr(_local, "scratch", None)
    if held is None or held.size < nbytes + SCRATCH_ALIGNMENT:
        held = _local.scratch = np.zeros(nbytes + SCRATCH_ALIGNMENT, np.uint8)
    address = int(held.__array_interface__["data"][0])
    return np.uint64(-(-address // SCRATCH_ALIGNMENT) * SCRATCH_ALIGNMENT)


def _help(calls: "SimpleQueue[SharedCall]") -> None:
    """Help with one call after the other. No variable keeps a call, and with it arrays, after it has ended."""
    while True:
        calls.get().help()
