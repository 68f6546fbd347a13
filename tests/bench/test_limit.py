"""The limit: its loops read and write all that they claim, and turns are taken in timing."""

from itertools import pairwise, product

import numpy as np
import pytest
from flcore_bench import Limit, interleaved, limit_cases, measured_limit
from flcore_bench.limit import FINALISTS, PREFIX, LimitBench, Loop

LOOPS = [Loop(*chosen) for chosen in product((1, 4), (False, True), (False, True), (1 << 16,), (1, 2))]


@pytest.mark.parametrize("loop", LOOPS, ids=lambda loop: loop.name.removeprefix(PREFIX))
def test_a_loop_reads_every_line_and_writes_every_line(loop: Loop) -> None:
    sources = [np.ones(100_003, np.float32) for _ in range(6)] + [np.ones(5_000, np.uint8)]
    target = np.ones(50_001, np.float32)
    bench = LimitBench(sources, target, threads=2)
    assert bench.work(loop)() == np.float32(1.0).view(np.uint32)
    written = np.flatnonzero(target == 0)
    assert written.size >= target.size - 32 and written[0] < 16 and np.all(np.diff(written) == 1)
    for source in sources:
        for place in (64, source.size // 2, source.size - 100):
            source.view(np.uint8)[place * source.itemsize : place * source.itemsize + 4] = 255
            assert bench.work(loop)() == 0xFFFFFFFF, "a byte that no loop sees makes the limit too fast"
            source[place : place + 4] = 1


def test_buffers_that_lie_otherwise_in_their_lines_are_read_to_their_own_ends() -> None:
    room = np.full(64 * 1024, 255, np.uint8)
    start = -room.ctypes.data % 64
    sources = []
    for number, aside in enumerate((0, 4, 4, 0)):  # of 2,048 bytes, 32 whole lines or 31
        sources.append(room[start + number * 4096 + aside :][:2048])
        sources[-1][:] = 1
    bench = LimitBench(sources, np.ones(64, np.float32), threads=1)
    for loop in LOOPS:
        assert bench.work(loop)() == 0x01010101


def test_only_the_fastest_loops_go_on() -> None:
    sources, target = [np.ones(10_000, np.float32) for _ in range(4)], np.ones(10_000, np.float32)
    cases = limit_cases(sources, target, threads=2)
    assert len(cases) == 2 * FINALISTS and all(name.startswith(PREFIX) for name in cases)


def test_the_limit_is_the_best_loop_and_the_fastest_run_of_any() -> None:
    taken = {f"{PREFIX}a": [3.0, 3.0, 1.0], f"{PREFIX}b": [2.0, 2.0, 2.0], "mean": [0.5]}
    assert measured_limit(taken) == Limit(f"{PREFIX}b", [2.0, 2.0, 2.0], 1.0)


def test_contenders_take_turns() -> None:
    seen: list[str] = []
    taken = interleaved({"a": lambda: seen.append("a"), "b": lambda: seen.append("b")}, rounds=3)
    assert {name: len(seconds) for name, seconds in taken.items()} == {"a": 3, "b": 3}
    changes = sum(one != other for one, other in pairwise(seen))
    assert changes >= 4, "every contender is measured once before any is measured twice"
