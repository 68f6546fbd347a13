"""One peer's means next to flcore's, interleaved in one process of the peer's environment."""

import importlib
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

import numpy as np
import numpy.typing as npt
from flcore_bench.aggregate_calls import TENSOR_ELEMENTS
from flcore_bench.limit import limit_cases, measured_limit
from flcore_bench.report import Goal, Row, ratio
from flcore_bench.timing import Work, interleaved
from flcore_bench.workload import CLIENTS, Sizes, format_count, make_clients, make_weights, prefaulted

import flcore

Array = npt.NDArray[Any]
Models = list[dict[str, Array]]

FLCORE = ("flcore float32", "flcore exact (default)", "flcore float32, fresh result")
TOLERANCE = 1e-4
"""The largest difference relative to the largest value: sums have another order or accumulator."""


@dataclass(frozen=True)
class Contender:
    """A peer's way to average the models.

    Attributes:
        what: Its name in the table.
        series: Its name in the plot.
        work: The call that is timed.
        first_tensor: Returns the first tensor of the call's result as an array, to check it.
        goals: How many times as long as flcore in float32 it takes at least, by the models' shape ("flat", "many").
    """

    what: str
    series: str
    work: Callable[[], Any]
    first_tensor: Callable[[Any], Array]
    goals: dict[str, float] = field(default_factory=dict)


def main() -> None:
    """Measure one peer, and print the rows as JSON, or `{"absent": true}` where the peer is not installed."""
    module, sizes = sys.argv[1], Sizes.of(sys.argv[2], int(sys.argv[3]))
    try:
        peer: Any = importlib.import_module(f"flcore_bench_peers.{module}")
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("flcore"):
            raise
        print(f"not installed: {error}", file=sys.stderr)
        print(json.dumps({"absent": True}))
        return
    label = f"{peer.PACKAGE} {version(peer.PACKAGE)}"
    rows = [row for shape in ("flat", "many") for row in contest_rows(peer, label, shape, sizes)]
    print(json.dumps({"absent": False, "rows": [row.to_json() for row in rows]}))


def contest_rows(peer: Any, label: str, shape: str, sizes: Sizes) -> list[Row]:
    """Measure the peer's means interleaved with flcore's, on the same arrays."""
    models, weights = _models(shape, sizes), make_weights(CLIENTS)
    updates = list(zip(models, weights, strict=True))
    contenders: list[Contender] = peer.contenders(models, weights, sizes.threads)
    _require_agreement(contenders, updates)
    cases = _flcore_cases(updates) | {contender.what: contender.work for contender in contenders}
    arrays = [array for model in models for array in model.values()]
    limits = limit_cases(arrays, prefaulted(sizes.elements), sizes.threads) if shape == "flat" else {}
    taken = interleaved(limits | cases, sizes.rounds)
    size = sum(array.nbytes for array in arrays)
    each = f"{format_count(sizes.elements)} f32" if shape == "flat" else f"{len(models[0]):,} x 1 KB"
    limit = measured_limit(taken) if limits else None
    series = {name: name for name in FLCORE[:2]} | {contender.what: contender.series for contender in contenders}
    rows = [
        Row(
            f"{name}, {CLIENTS} x {each}, beside {label}",
            taken[name],
            size,
            limit,
            {other.what: ratio(taken[other.what], taken[name]) for other in contenders if name in FLCORE},
            series=series.get(name, "") if limit else "",
        )
        for name in ([limit.loop] if limit else []) + list(cases)
    ]
    first = rows[1 if limit else 0]
    for contender in contenders:
        if shape in contender.goals:
            first.goals.append(Goal(contender.what, first.against[contender.what], contender.goals[shape]))
    return rows


def _flcore_cases(updates: list[tuple[dict[str, Any], float]]) -> dict[str, Work]:
    """Return flcore's means. Goals refer to the first one, with float32 sums."""
    out = {name: prefaulted(array.size) for name, array in updates[0][0].items()}
    return {
        FLCORE[0]: lambda: flcore.aggregate(updates, accumulate="float32", out=out),
        FLCORE[1]: lambda: flcore.aggregate(updates, out=out),
        FLCORE[2]: lambda: flcore.aggregate(updates, accumulate="float32"),
    }


def _models(shape: str, sizes: Sizes) -> Models:
    elements = sizes.elements if shape == "flat" else TENSOR_ELEMENTS * sizes.tensors
    step = elements if shape == "flat" else TENSOR_ELEMENTS
    return [
        {f"layer{index}.weight": flat[start : start + step] for index, start in enumerate(range(0, elements, step))}
        for flat in make_clients(CLIENTS, elements)
    ]


def _require_agreement(contenders: list[Contender], updates: list[tuple[dict[str, Any], float]]) -> None:
    """Raise unless all contenders yield the same mean: otherwise their ratios are meaningless."""
    name = next(iter(updates[0][0]))
    expected = flcore.aggregate([({name: model[name][:TENSOR_ELEMENTS]}, weight) for model, weight in updates])[name]
    for contender in contenders:
        found = contender.first_tensor(contender.work())[:TENSOR_ELEMENTS]
        if not np.allclose(found, expected, rtol=0, atol=TOLERANCE * float(np.abs(expected).max())):
            raise RuntimeError(f"{contender.what} averages to {found[:4]}, flcore to {expected[:4]}")
