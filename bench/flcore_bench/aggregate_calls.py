"""`flcore.aggregate` as a user calls it: one flat tensor, and ten thousand tensors of 1 KB."""

from typing import Any

import numpy as np
import numpy.typing as npt

import flcore
from flcore_bench.limit import limit_cases, measured_limit
from flcore_bench.numpy_baselines import average_of_stack, matrix_product
from flcore_bench.report import Goal, Row, ratio
from flcore_bench.timing import interleaved
from flcore_bench.workload import CLIENTS, Sizes, format_count, make_clients, make_weights, prefaulted

PAGE_WORDS = 1024
"""float32 values in a page of 4 KiB."""


def flat_mean_rows(sizes: Sizes) -> list[Row]:
    """Measure `flcore.aggregate` in float32 and exact, with and without `out=`, next to NumPy and the limit."""
    models, weights = make_clients(CLIENTS, sizes.elements), make_weights(CLIENTS)
    updates = [({"model": model}, weight) for model, weight in zip(models, weights, strict=True)]
    out = {"model": prefaulted(sizes.elements)}
    matrix = np.stack(models)
    shares = np.array(weights, np.float32) / np.float32(sum(weights))
    target = prefaulted(sizes.elements)
    taken = interleaved(
        {
            "reused": lambda: flcore.aggregate(updates, accumulate="float32", out=out),
            "fresh": lambda: flcore.aggregate(updates, accumulate="float32"),
            "exact": lambda: flcore.aggregate(updates, out=out),
            "pages": lambda: fault_in(sizes.elements),
            "gemv": lambda: matrix_product(matrix, shares, target),
            "average": lambda: average_of_stack(models, weights),
            **limit_cases(models, target, sizes.threads),
        },
        sizes.rounds,
    )
    return _flat_rows(taken, sum(model.nbytes for model in models), f"{CLIENTS} x {format_count(sizes.elements)} f32")


def fault_in(elements: int) -> npt.NDArray[Any]:
    """Allocate a float32 result, and touch each of its pages."""
    array = np.empty(elements, np.float32)
    array[::PAGE_WORDS] = 0
    return array


def _flat_rows(taken: dict[str, list[float]], size: int, shape: str) -> list[Row]:
    limit = measured_limit(taken)

    def row(what: str, name: str, series: str) -> Row:
        others = {"BLAS gemv": "gemv", "np.average": "average"} if series.startswith("flcore") else {}
        against = {other: ratio(taken[case], taken[name]) for other, case in others.items()}
        return Row(f"{what}, {shape}", taken[name], size, limit, against, series=series)

    reused = row("aggregate, float32, out=", "reused", "flcore float32")
    of_limit = reused.of_limit or 0.0
    reused.goals.extend([Goal("of limit", of_limit, 0.85, unit=""), Goal("gemv", reused.against["BLAS gemv"], 1.4)])
    fresh = row("aggregate, float32, fresh result", "fresh", "flcore float32, fresh result")
    pages = Row("faulting in a fresh result's pages", taken["pages"])
    loss = fresh.median_s - reused.median_s
    fresh.goals.append(Goal("loss over cost of the pages", loss / pages.median_s, 1.0, is_at_least=False))
    return [
        Row(f"{limit.loop}, {shape}", limit.seconds, size, limit),
        reused,
        fresh,
        pages,
        row("aggregate, exact (the default), out=", "exact", "flcore exact (default)"),
        row("NumPy, BLAS gemv, stacked beforehand", "gemv", "NumPy, BLAS gemv"),
        row("NumPy, np.average(np.stack)", "average", "NumPy, np.average"),
    ]


TENSOR_ELEMENTS = 256
"""float32 values of one tensor: 1 KB."""

Array = npt.NDArray[Any]
Updates = list[tuple[dict[str, Array], float]]


def many_tensor_rows(sizes: Sizes) -> list[Row]:
    """Measure the cost per tensor: many tensors against one of the same total size, in both accumulators."""
    flat, many = _flat_and_many(sizes.tensors)
    accumulators = ("float32", "exact")
    taken = interleaved(
        {
            f"{kind} {accumulate}": lambda updates=updates, accumulate=accumulate: flcore.aggregate(  # type: ignore[misc]
                updates, accumulate=accumulate
            )
            for kind, updates in (("flat", flat), ("many", many))
            for accumulate in accumulators
        },
        sizes.rounds,
    )
    size = 4 * TENSOR_ELEMENTS * sizes.tensors * CLIENTS
    rows: list[Row] = []
    for accumulate in accumulators:
        flat_row = Row(f"aggregate, {accumulate}, one flat tensor of that size", taken[f"flat {accumulate}"], size)
        many_row = Row(f"aggregate, {accumulate}, {sizes.tensors:,} tensors of 1 KB", taken[f"many {accumulate}"], size)
        extra = (many_row.median_s - flat_row.median_s) / (sizes.tensors * CLIENTS) * 1e6
        many_row.goals.append(Goal("per tensor and client over flat", extra, 5.0, is_at_least=False, unit=" us"))
        rows += [flat_row, many_row]
    return rows


def _flat_and_many(tensors: int) -> tuple[Updates, Updates]:
    """Return the same updates as one tensor each, and as tensors of 1 KB."""
    models, weights = make_clients(CLIENTS, TENSOR_ELEMENTS * tensors), make_weights(CLIENTS)
    flat = [({"model": model}, weight) for model, weight in zip(models, weights, strict=True)]
    many = [
        (
            {
                f"layer{index}.weight": model[index * TENSOR_ELEMENTS : (index + 1) * TENSOR_ELEMENTS]
                for index in range(tensors)
            },
            weight,
        )
        for model, weight in zip(models, weights, strict=True)
    ]
    return flat, many
