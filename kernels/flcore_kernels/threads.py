"""Our own threads: a pool that runs compiled loops, which let go of the interpreter's lock.

Work comes as a list of batches that any thread may take; the caller's thread takes its share. No result depends on how
many threads there are. (Numba's own threads are not used: its default layer ends the process when two threads call in.)
"""

import os
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from flcore_kernels.errors import KernelError

Result = TypeVar("Result")
VARIABLE = "FLCORE_THREADS"


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
    """Return the argument, or else `FLCORE_THREADS`, or else the cores that are available."""
    if asked is None:
        given = os.environ.get(VARIABLE, "")
        if not given:
            return available_cores()
        if not given.isdecimal():
            raise KernelError(f"{VARIABLE} is {given!r}; expected a whole number of threads, at least 1")
        asked = int(given)
    if asked < 1:
        raise KernelError(f"the number of threads is {asked}; expected at least 1")
    return asked


class Pool:
    """Threads that share batches of work; made when first needed, and made anew in a forked process."""

    def __init__(self, threads: int | None = None) -> None:
        self.threads = thread_count(threads)
        self._lock = threading.Lock()
        self._executor: ThreadPoolExecutor | None = None
        self._process = os.getpid()

    def run(self, work: Callable[[int], Result], batches: int) -> list[Result]:
        """Call `work` for every batch number; return what it returned, in their order. Any thread may call."""
        if batches <= 1 or self.threads == 1:
            return [work(batch) for batch in range(batches)]
        results: dict[int, Result] = {}
        numbers = iter(range(batches))

        def take() -> None:
            for batch in numbers:  # a range's iterator hands each number out once, whoever asks
                results[batch] = work(batch)

        helpers: list[Future[None]] = []
        executor = self._ready()
        try:
            helpers.extend(executor.submit(take) for _ in range(min(self.threads, batches) - 1))
            take()
        finally:
            for helper in helpers:
                helper.cancel()  # one that has not begun has nothing left to do
            failures = [helper.exception() for helper in helpers if not helper.cancelled()]
        for failure in failures:
            if failure is not None:
                raise failure
        return [results[batch] for batch in range(batches)]

    def _ready(self) -> ThreadPoolExecutor:
        if self._process != os.getpid():  # forked: neither the threads nor a held lock came along
            self._lock, self._executor, self._process = threading.Lock(), None, os.getpid()
        with self._lock:
            executor = self._executor
            if executor is None:
                executor = ThreadPoolExecutor(self.threads - 1, thread_name_prefix="flcore-kernels")
                self._executor = executor
            return executor
