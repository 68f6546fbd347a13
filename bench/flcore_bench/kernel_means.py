"""Means by the CPU kernels themselves: narrow wire dtypes, exact sums, and MetisFL's grid of clients and sizes.

The grid is that of arXiv 2311.00334: few and many clients, small and large models.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy.typing as npt
from flcore_kernels import Operand, Total, backend

import flcore
from flcore_bench.limit import limit_cases, measured_limit
from flcore_bench.numpy_baselines import upcast_and_add
from flcore_bench.report import Goal, Row, ratio
from flcore_bench.timing import Work, interleaved
from flcore_bench.workload import (
    CLIENTS,
    Sizes,
    buffers,
    encode_models,
    format_count,
    make_clients,
    make_weights,
    prefaulted,
)

Array = npt.NDArray[Any]

NARROW_GOALS = {"bfloat16": (1.6, 12.0), "float16": (1.6, 12.0), "int8[256]": (2.2, 15.0)}
"""Goals: how many times as fast per parameter as flcore's float32, and as NumPy."""


def narrow_dtype_rows(sizes: Sizes) -> list[Row]:
    """Measure each narrow dtype interleaved with float32, its NumPy baseline and its limit."""
    models, weights = make_clients(CLIENTS, sizes.elements), make_weights(CLIENTS)
    rows: list[Row] = []
    for dtype in NARROW_GOALS:
        rows += _dtype_rows(sizes, dtype, list(models), encode_models(models, dtype), weights)
    return rows


def _dtype_rows(
    sizes: Sizes, dtype: str, models: list[Operand], parts: list[Operand], weights: list[float]
) -> list[Row]:
    cpu = backend("cpu", threads=sizes.threads)
    result = "float32" if dtype.startswith("int8[") else dtype
    target = prefaulted(sizes.elements, "float32" if result == "float32" else "uint16")
    wide = prefaulted(sizes.elements)
    cases: dict[str, Work] = {
        "own": lambda: cpu.mean(parts, weights, target, dtype, "float32"),
        "float32": lambda: cpu.mean(models, weights, wide, "float32", "float32"),
        "numpy": partial(upcast_and_add, parts, weights, dtype),
    }
    # The limit loops overwrite the kernel's result, which is not read afterwards.
    cases |= limit_cases(buffers(parts), target, sizes.threads)
    taken = interleaved(cases, sizes.rounds)
    size = sum(array.nbytes for array in buffers(parts))
    limit = measured_limit(taken)
    per_parameter, over_numpy = ratio(taken["float32"], taken["own"]), ratio(taken["numpy"], taken["own"])
    over_float32_goal, over_numpy_goal = NARROW_GOALS[dtype]
    shape = f"{CLIENTS} x {format_count(sizes.elements)}"
    return [
        Row(
            f"kernel mean, {dtype}, float32 sums, {shape}",
            taken["own"],
            size,
            limit,
            {"our f32": per_parameter, "NumPy upcast and add": over_numpy},
            [Goal("our f32", per_parameter, over_float32_goal), Goal("NumPy", over_numpy, over_numpy_goal)],
            series=f"flcore {dtype}, float32 sums",
        ),
        Row(f"kernel mean, float32 beside it, {shape}", taken["float32"], 4 * CLIENTS * sizes.elements),
        Row(f"NumPy, upcast and add, {dtype}, {shape}", taken["numpy"], size, limit),
        Row(f"{limit.loop}, {dtype}", limit.seconds, size, limit),
    ]


STORED_GROUP = 8
"""Clients per call with a stored total: the largest group that `flcore.aggregate` forms from an iterator."""

EXACT_CASES = {
    "one shot": (CLIENTS, 1.5),
    "one shot, terms about 1/2": (CLIENTS, None),
    "stored total": (STORED_GROUP, 1.8),
    "client by client": (CLIENTS, 3.3),
}
"""For each case, the number of clients and the goal: how many times as long as float32 the exact sum may take.

Terms near 1/2 are the worst case: the level changes from block to block, so the kernel's guess of it fails.
"""


def exact_rows(sizes: Sizes) -> list[Row]:
    """Measure the float32 and the exact accumulator in each case. Stored totals are resident, as in a server."""
    models = make_clients(CLIENTS, sizes.elements)
    rows: list[Row] = []
    for case, (count, most) in EXACT_CASES.items():
        parts, out = models[:count], prefaulted(sizes.elements)
        cases = {accumulate: _work(sizes, case, parts, out, accumulate) for accumulate in ("float32", "exact")}
        taken = interleaved(cases | limit_cases(parts, out, sizes.threads), sizes.rounds)
        limit = measured_limit(taken)
        times = ratio(taken["exact"], taken["float32"])
        size = 4 * count * sizes.elements
        shape = f"{case}, {count} x {format_count(sizes.elements)} f32"
        goals = [Goal("over float32", times, most, is_at_least=False)] if most else []
        rows.append(Row(f"kernel, float32, {shape}", taken["float32"], size, limit))
        rows.append(Row(f"kernel, exact, {shape}", taken["exact"], size, limit, {"float32": 1 / times}, goals))
    return rows


def _work(sizes: Sizes, case: str, parts: Sequence[Array], out: Array, accumulate: str) -> Work:
    cpu = backend("cpu", threads=sizes.threads)
    weights = [float(1 + k) for k in range(len(parts))] if "1/2" in case else make_weights(len(parts))
    if case.startswith("one shot"):
        return lambda: cpu.mean(parts, weights, out, "float32", accumulate)
    total: Total = cpu.total(sizes.elements, accumulate)

    def stored() -> None:
        cpu.fold(total, parts, weights, "float32")
        cpu.finish(total, out, "float32")

    def one_by_one() -> None:
        for part, weight in zip(parts, weights, strict=True):
            cpu.fold(total, [part], [weight], "float32")
        cpu.finish(total, out, "float32")

    return stored if case == "stored total" else one_by_one


GRID_GOAL = 0.667
"""The worst cell reaches at least two thirds of the best cell's share of the limit."""


def grid_rows(sizes: Sizes) -> list[Row]:
    """Measure every cell of the grid. Smaller models are prefixes of the largest ones."""
    models = make_clients(max(sizes.grid_clients), max(sizes.grid_elements))
    rows = [
        _cell(sizes, [model[:elements] for model in models[:clients]])
        for clients in sizes.grid_clients
        for elements in sizes.grid_elements
    ]
    shares = [row.of_limit or 0.0 for row in rows]
    worst = rows[shares.index(min(shares))]
    worst.goals.append(Goal("worst corner over best", min(shares) / max(shares), GRID_GOAL, unit=""))
    return rows


def _cell(sizes: Sizes, parts: list[Array]) -> Row:
    cpu = backend("cpu", threads=sizes.threads)
    weights, elements = make_weights(len(parts)), parts[0].size
    out, tiny_out = prefaulted(elements), prefaulted(64)
    tiny = [part[:64] for part in parts]
    updates = [({"model": part}, weight) for part, weight in zip(parts, weights, strict=True)]
    named = {"model": out}
    taken = interleaved(
        {
            "mean": partial(cpu.mean, parts, weights, out, "float32", "float32"),
            "fixed": partial(cpu.mean, tiny, weights, tiny_out, "float32", "float32"),
            "aggregate": lambda: flcore.aggregate(updates, accumulate="float32", out=named),
            **limit_cases(parts, out, sizes.threads),
        },
        sizes.rounds,
    )
    limit = measured_limit(taken)
    aggregate = Row("", taken["aggregate"], limit=limit)
    fixed = Row("", taken["fixed"])
    return Row(
        f"grid: kernel mean, float32, {len(parts)} x {format_count(elements)} f32",
        taken["mean"],
        sum(part.nbytes for part in parts),
        limit,
        note=f"fixed cost {fixed.median_s * 1e6:,.0f} us; aggregate() {aggregate.median_s * 1e3:,.3f} ms, "
        f"{aggregate.of_limit:.2f} of limit",
    )
