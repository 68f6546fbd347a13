"""Interleaved timing: every contender once, then every contender again.

Disturbances of a machine (other tenants, clock changes, page cache) last longer than one call. Contenders that are
measured one after the other see different conditions. Interleaved contenders see the same ones, so their ratio holds.
"""

import sys
import time
from collections.abc import Callable, Mapping
from functools import partial

Work = Callable[[], object]
"""A call to be timed."""

Sample = Callable[[], float]
"""A call that times itself and returns the seconds."""

SAMPLE_S = 0.002
"""The least duration of a sample. Shorter work is repeated within a sample, and the time divided."""


def interleaved(cases: Mapping[str, Work], rounds: int) -> dict[str, list[float]]:
    """Return the seconds per call of each case in each round, after warm-up calls that do not count."""
    calls = {name: _calls(work) for name, work in cases.items()}
    return _rotated({name: partial(_seconds, work, calls[name]) for name, work in cases.items()}, rounds)


def interleaved_samples(samples: Mapping[str, Sample], rounds: int) -> dict[str, list[float]]:
    """Return the seconds of each sample in each round, after one sample of each that does not count."""
    for name, sample in samples.items():
        report_progress(name)
        sample()
    return _rotated(samples, rounds)


def report_progress(what: str) -> None:
    """Print what is being measured to standard error, if that is a terminal."""
    if sys.stderr.isatty():
        print(f"measuring: {what}", file=sys.stderr, flush=True)


def _rotated(samples: Mapping[str, Sample], rounds: int) -> dict[str, list[float]]:
    """Take one sample of each case per round. The order rotates, so no case always follows the same other case."""
    taken: dict[str, list[float]] = {name: [] for name in samples}
    order = list(samples)
    for _ in range(rounds):
        for name in order:
            taken[name].append(samples[name]())
        order.append(order.pop(0))
    return taken


def _calls(work: Work) -> int:
    work()
    once = _seconds(work, 1)
    return max(1, min(1000, int(SAMPLE_S / max(once, 1e-9))))


def _seconds(work: Work, calls: int) -> float:
    started = time.perf_counter()
    for _ in range(calls - 1):
        work()
    kept = work()
    taken = time.perf_counter() - started
    del kept  # freeing a result returns its pages, which takes time and is not part of the call
    return taken / calls
