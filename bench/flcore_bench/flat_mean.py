"""The float32 mean of one flat tensor, as a user calls it: into arrays that are there already, and into fresh ones."""

from typing import Any

import numpy as np
import numpy.typing as npt

import flcore
from flcore_bench.clients import CLIENTS, make_clients, make_weights, touched
from flcore_bench.limit import limit_cases, measured_limit
from flcore_bench.numpy_baselines import average_of_stack, matrix_product
from flcore_bench.row import Goal, Row, ratio
from flcore_bench.setup import Setup, count_of
from flcore_bench.timing import interleaved

PAGE_WORDS = 1024
"""float32 values in a page of 4 KiB."""


def flat_mean_rows(setup: Setup) -> list[Row]:
    """Measure `flcore.aggregate` in float32 and exact, with `out=` and without, beside NumPy and the limit."""
    models, weights = make_clients(CLIENTS, setup.elements), make_weights(CLIENTS)
    updates = [({"model": model}, weight) for model, weight in zip(models, weights, strict=True)]
    out = {"model": touched(setup.elements)}
    matrix = np.stack(models)
    shares = np.array(weights, np.float32) / np.float32(sum(weights))
    target = touched(setup.elements)
    taken = interleaved(
        {
            "reused": lambda: flcore.aggregate(updates, accumulate="float32", out=out),
            "fresh": lambda: flcore.aggregate(updates, accumulate="float32"),
            "exact": lambda: flcore.aggregate(updates, out=out),
            "pages": lambda: fault_in(setup.elements),
            "gemv": lambda: matrix_product(matrix, shares, target),
            "average": lambda: average_of_stack(models, weights),
            **limit_cases(models, target, setup.threads),
        },
        setup.rounds,
    )
    return _rows(taken, sum(model.nbytes for model in models), f"{CLIENTS} x {count_of(setup.elements)} f32")


def fault_in(elements: int) -> npt.NDArray[Any]:
    """Allocate a float32 result and have the system give it its pages."""
    array = np.empty(elements, np.float32)
    array[::PAGE_WORDS] = 0
    return array


def _rows(taken: dict[str, list[float]], size: int, shape: str) -> list[Row]:
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
