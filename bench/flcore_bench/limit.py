"""The limit of a measurement: how long this machine takes to only read its inputs and write a result."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import product
from statistics import median
from typing import Any

import numpy as np
import numpy.typing as npt

from flcore_bench.report import Limit
from flcore_bench.timing import Work, interleaved

PREFIX = "limit: "
TILE_BYTES = (1 << 16, 1 << 17, 1 << 18)
CACHE_BYTES = 64 << 20
"""Up to this many bytes in all, the result may stay in the cache, so plain stores are tried as well."""

FINALISTS = 3
"""How many loops of the trial are measured, per number of threads."""

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Loop:
    """One way to read and write."""

    buffers_at_once: int
    is_prefetched: bool
    is_nontemporal: bool
    tile_bytes: int
    threads: int

    @property
    def name(self) -> str:
        """Its name in a table."""
        ahead = ", fetched ahead" if self.is_prefetched else ""
        past = ", past the cache" if self.is_nontemporal else ""
        threads = f"{self.threads} thread{'s' if self.threads > 1 else ''}"
        return f"{PREFIX}{threads}, {self.buffers_at_once} at once, {self.tile_bytes >> 10} KiB tiles{ahead}{past}"


def limit_cases(sources: Sequence[Array], target: Array, threads: int) -> dict[str, Work]:
    """Return the fastest read-and-write loops, by name, to be timed interleaved with other cases.

    A trial runs all loops and selects the fastest. Names begin with `PREFIX`. The target is overwritten.
    """
    total = sum(source.nbytes for source in sources) + target.nbytes
    is_small = total < CACHE_BYTES
    loops = [
        Loop(*chosen)
        for chosen in product(
            (1, 4),
            (False, True),
            (True, False) if is_small else (True,),
            TILE_BYTES,
            sorted({1, threads}) if is_small else (threads,),
        )
    ]
    bench = LimitBench(sources, target, threads)
    works = {loop.name: bench.work(loop) for loop in loops}
    trial = {name: min(taken) for name, taken in interleaved(works, rounds=2).items()}
    ranked = sorted(loops, key=lambda loop: trial[loop.name])
    counts = {loop.threads for loop in loops}
    finalists = [[loop.name for loop in ranked if loop.threads == count][:FINALISTS] for count in sorted(counts)]
    return {name: works[name] for names in finalists for name in names}


def measured_limit(taken: Mapping[str, list[float]]) -> Limit:
    """Return the limit from interleaved timings of `limit_cases` and others."""
    loops = {name: seconds for name, seconds in taken.items() if name.startswith(PREFIX)}
    best = min(loops, key=lambda name: median(loops[name]))
    return Limit(best, loops[best], min(min(seconds) for seconds in loops.values()))


class LimitBench:
    """The buffers of a measurement as addresses, and the threads that read and write them."""

    def __init__(self, sources: Sequence[Array], target: Array, threads: int) -> None:
        from flcore_bench.limit_loops import LINE, read_and_write  # compiles when it is imported

        self._kernel: Callable[..., Any] = read_and_write
        self._kept = (*sources, target)
        # Sorted by lines: the loop reads four buffers at once if they have as many lines. (Buffers of one size may
        # differ by a line, as their alignment differs.)
        places = sorted((_whole_lines(source, LINE) for source in sources), key=lambda place: -place[1])
        self._addresses = np.array([first for first, _ in places], np.uint64)
        self._lines = np.array([count for _, count in places], np.int64)
        self._target, self._target_lines = _whole_lines(target, LINE)
        self._largest = max(buffer.nbytes for buffer in self._kept)
        self._pool = ThreadPoolExecutor(max(1, threads - 1))

    def work(self, loop: Loop) -> Work:
        """Return a call that reads and writes everything once. The call returns the largest word that it read."""
        tiles = max(1, -(-self._largest // loop.tile_bytes))
        size = max(1, min((4 << 20) // loop.tile_bytes, tiles // (4 * loop.threads)))
        ranges = [(first, min(tiles, first + size)) for first in range(0, tiles, size)]

        def walk(numbers: Iterator[tuple[int, int]]) -> int:
            most = 0
            for first, last in numbers:  # all threads share one iterator, so each takes the next range
                found = self._kernel(
                    *(self._addresses, self._lines, self._target, self._target_lines, first, last, tiles),
                    *(loop.buffers_at_once, loop.is_prefetched, loop.is_nontemporal),
                )
                most = max(most, found)
            return most

        def run() -> int:
            numbers = iter(ranges)
            others = [self._pool.submit(walk, numbers) for _ in range(loop.threads - 1)]
            mine = walk(numbers)
            return max(mine, *(other.result() for other in others), 0)

        return run


def _whole_lines(array: Array, line: int) -> tuple[int, int]:
    """Return the address of the first whole cache line in an array, and the number of whole lines."""
    address = int(array.__array_interface__["data"][0])
    first = -(-address // line) * line
    return first, max(0, address + array.nbytes - first) // line
