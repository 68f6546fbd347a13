"""Ten thousand tensors of 1 KB: what a name, a shape and a call cost where there is next to no arithmetic."""

from typing import Any

import numpy.typing as npt

import flcore
from flcore_bench.clients import CLIENTS, make_clients, make_weights
from flcore_bench.row import Goal, Row
from flcore_bench.setup import Setup
from flcore_bench.timing import interleaved

TENSOR = 256
"""float32 values of one tensor: 1 KB."""

Array = npt.NDArray[Any]
Named = list[tuple[dict[str, Array], float]]


def many_tensor_rows(setup: Setup) -> list[Row]:
    """Measure `flcore.aggregate` over many tensors and over one of the same size, in both accumulators."""
    flat, many = flat_and_many(setup.tensors)
    accumulators = ("float32", "exact")
    taken = interleaved(
        {
            f"{kind} {accumulate}": lambda updates=updates, accumulate=accumulate: flcore.aggregate(  # type: ignore[misc]
                updates, accumulate=accumulate
            )
            for kind, updates in (("flat", flat), ("many", many))
            for accumulate in accumulators
        },
        setup.rounds,
    )
    size = 4 * TENSOR * setup.tensors * CLIENTS
    rows: list[Row] = []
    for accumulate in accumulators:
        one = Row(f"aggregate, {accumulate}, one flat tensor of that size", taken[f"flat {accumulate}"], size)
        all_ = Row(f"aggregate, {accumulate}, {setup.tensors:,} tensors of 1 KB", taken[f"many {accumulate}"], size)
        extra = (all_.median_s - one.median_s) / (setup.tensors * CLIENTS) * 1e6
        all_.goals.append(Goal("per tensor and client over flat", extra, 5.0, is_at_least=False, unit=" us"))
        rows += [one, all_]
    return rows


def flat_and_many(tensors: int) -> tuple[Named, Named]:
    """Return the same updates twice: as one tensor each, and cut into tensors of 1 KB."""
    models, weights = make_clients(CLIENTS, TENSOR * tensors), make_weights(CLIENTS)
    flat = [({"model": model}, weight) for model, weight in zip(models, weights, strict=True)]
    many = [
        (
            {f"layer{index}.weight": model[index * TENSOR : (index + 1) * TENSOR] for index in range(tensors)},
            weight,
        )
        for model, weight in zip(models, weights, strict=True)
    ]
    return flat, many
