"""Timing in turn: every contender once, then every contender again.

What disturbs a machine (other tenants, clocks, page cache) lasts longer than one call. Contenders that are measured one
after another meet different machines; contenders that take turns meet the same one, and their ratio holds.
"""

import time
from collections.abc import Callable, Mapping

Work = Callable[[], object]

SAMPLE_S = 0.002
"""A sample lasts at least this long: shorter work is repeated within one, and the time divided."""


def interleaved(cases: Mapping[str, Work], rounds: int) -> dict[str, list[float]]:
    """Return the seconds per call of each case in each round; one call of each goes ahead and does not count.

    The order turns by one place a round, so that no case always follows the same other.
    """
    calls = {name: _calls(work) for name, work in cases.items()}
    taken: dict[str, list[float]] = {name: [] for name in cases}
    order = list(cases)
    for _ in range(rounds):
        for name in order:
            taken[name].append(_seconds(cases[name], calls[name]))
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
    del kept  # letting a result go costs time too (its pages go back), and is not what is measured
    return taken / calls
