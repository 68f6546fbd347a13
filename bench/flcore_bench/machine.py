"""The machine that is measured: what it is, and how fast it reads memory."""

import os
import platform
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

TILE_BYTES = 1 << 20


@dataclass(frozen=True)
class Machine:
    """What a figure was measured on."""

    processor: str
    cores: int
    memory_gib: float
    system: str
    python: str


def describe_machine() -> Machine:
    """Return what this machine says of itself."""
    processor = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        names = [line.partition(":")[2].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        processor = names[0] if names else processor
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return Machine(processor, os.cpu_count() or 1, round(memory, 1), platform.system(), platform.python_version())


def peak_bytes() -> int:
    """Return this process's peak resident memory. (`getrusage` would start from its parent's.)"""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def best_seconds(work: Callable[[], object], repeats: int) -> float:
    """Return the shortest of some runs."""
    return min(seconds(work, repeats))


def seconds(work: Callable[[], object], repeats: int) -> list[float]:
    """Return how long each run took."""
    taken = []
    for _ in range(repeats):
        started = time.perf_counter()
        work()
        taken.append(time.perf_counter() - started)
    return taken


def read_bandwidth(buffer: npt.NDArray[np.float32], threads: int, repeats: int = 5) -> float:
    """Return how many bytes a second `threads` threads can read from a buffer: the best of several loops.

    A limit that is measured by a bad loop is too low, so the best counts. A ratio to it above 1 means it still is.
    """
    loops: list[Callable[[npt.NDArray[np.float32]], object]] = [np.max, np.sum, lambda part: np.dot(part, part)]
    shares = np.array_split(buffer, threads)

    def read(share: npt.NDArray[np.float32], loop: Callable[[npt.NDArray[np.float32]], object]) -> None:
        step = TILE_BYTES // share.itemsize
        with np.errstate(all="ignore"):  # the bits may be those of another dtype
            for start in range(0, share.size, step):
                loop(share[start : start + step])

    with ThreadPoolExecutor(threads) as pool:
        best = min(
            best_seconds(lambda loop=loop: list(pool.map(read, shares, [loop] * threads)), repeats)  # type: ignore[misc]
            for loop in loops
        )
    return buffer.nbytes / best
