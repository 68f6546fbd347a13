"""What exactness costs: the same means with exact and with float32 sums, in one shot, and with a total that is kept."""

from collections.abc import Sequence
from typing import Any

import numpy.typing as npt
from flcore_kernels import Total, backend

from flcore_bench.clients import CLIENTS, make_clients, make_weights, touched
from flcore_bench.limit import limit_cases, measured_limit
from flcore_bench.row import Goal, Row, ratio
from flcore_bench.setup import Setup, count_of
from flcore_bench.timing import Work, interleaved

STORED = 8
"""Clients of one call with a total that is kept: the largest group that `flcore.aggregate` makes of an iterator."""

WAYS = {
    "one shot": (CLIENTS, 1.5),
    "one shot, terms about 1/2": (CLIENTS, None),
    "stored total": (STORED, 1.8),
    "client by client": (CLIENTS, 3.3),
}
"""The clients of each way, and at most how many times as long as float32 the exact sum may take.

Terms about 1/2 are the worst case: there a block's level changes from block to block, so that guesses are wrong.
"""

Array = npt.NDArray[Any]


def exact_rows(setup: Setup) -> list[Row]:
    """Measure both accumulators in each way; folds into a total that is in memory already, as a server's is."""
    models = make_clients(CLIENTS, setup.elements)
    rows: list[Row] = []
    for way, (count, most) in WAYS.items():
        parts, out = models[:count], touched(setup.elements)
        cases = {accumulate: _work(setup, way, parts, out, accumulate) for accumulate in ("float32", "exact")}
        taken = interleaved(cases | limit_cases(parts, out, setup.threads), setup.rounds)
        limit = measured_limit(taken)
        times = ratio(taken["exact"], taken["float32"])
        size = 4 * count * setup.elements
        shape = f"{way}, {count} x {count_of(setup.elements)} f32"
        goals = [Goal("over float32", times, most, is_at_least=False)] if most else []
        rows.append(Row(f"kernel, float32, {shape}", taken["float32"], size, limit))
        rows.append(Row(f"kernel, exact, {shape}", taken["exact"], size, limit, {"float32": 1 / times}, goals))
    return rows


def _work(setup: Setup, way: str, parts: Sequence[Array], out: Array, accumulate: str) -> Work:
    cpu = backend("cpu", threads=setup.threads)
    weights = [float(1 + k) for k in range(len(parts))] if "1/2" in way else make_weights(len(parts))
    if way.startswith("one shot"):
        return lambda: cpu.mean(parts, weights, out, "float32", accumulate)
    total: Total = cpu.total(setup.elements, accumulate)

    def stored() -> None:
        cpu.fold(total, parts, weights, "float32")
        cpu.finish(total, out, "float32")

    def one_by_one() -> None:
        for part, weight in zip(parts, weights, strict=True):
            cpu.fold(total, [part], [weight], "float32")
        cpu.finish(total, out, "float32")

    return stored if way == "stored total" else one_by_one
