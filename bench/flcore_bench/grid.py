"""MetisFL's grid (arXiv 2311.00334): few and many clients, small and large models; the share of the limit in each."""

from functools import partial
from typing import Any

import numpy.typing as npt
from flcore_kernels import backend

import flcore
from flcore_bench.clients import make_clients, make_weights, touched
from flcore_bench.limit import limit_cases, measured_limit
from flcore_bench.row import Goal, Row
from flcore_bench.setup import Setup, count_of
from flcore_bench.timing import interleaved

KEPT = 0.667
"""The share of the limit may fall by a third from the best corner to the worst."""

Array = npt.NDArray[Any]


def grid_rows(setup: Setup) -> list[Row]:
    """Measure every corner; the largest models are made once, and the smaller ones are their beginnings."""
    models = make_clients(max(setup.grid_clients), max(setup.grid_elements))
    rows = [
        _corner(setup, [model[:elements] for model in models[:clients]])
        for clients in setup.grid_clients
        for elements in setup.grid_elements
    ]
    shares = [row.of_limit or 0.0 for row in rows]
    worst = rows[shares.index(min(shares))]
    worst.goals.append(Goal("worst corner over best", min(shares) / max(shares), KEPT, unit=""))
    return rows


def _corner(setup: Setup, parts: list[Array]) -> Row:
    cpu = backend("cpu", threads=setup.threads)
    weights, elements = make_weights(len(parts)), parts[0].size
    out, tiny_out = touched(elements), touched(64)
    tiny = [part[:64] for part in parts]
    updates = [({"model": part}, weight) for part, weight in zip(parts, weights, strict=True)]
    named = {"model": out}
    taken = interleaved(
        {
            "mean": partial(cpu.mean, parts, weights, out, "float32", "float32"),
            "fixed": partial(cpu.mean, tiny, weights, tiny_out, "float32", "float32"),
            "aggregate": lambda: flcore.aggregate(updates, accumulate="float32", out=named),
            **limit_cases(parts, out, setup.threads),
        },
        setup.rounds,
    )
    limit = measured_limit(taken)
    aggregate = Row("", taken["aggregate"], limit=limit)
    fixed = Row("", taken["fixed"])
    return Row(
        f"grid: kernel mean, float32, {len(parts)} x {count_of(elements)} f32",
        taken["mean"],
        sum(part.nbytes for part in parts),
        limit,
        note=f"fixed cost {fixed.median_s * 1e6:,.0f} us; aggregate() {aggregate.median_s * 1e3:,.3f} ms, "
        f"{aggregate.of_limit:.2f} of limit",
    )
