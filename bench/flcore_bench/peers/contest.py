"""One peer against flcore, in one process: what the interpreter of the peer's environment runs."""

import importlib
import json
import sys
from importlib.metadata import version
from typing import Any

import numpy as np

import flcore
from flcore_bench.clients import CLIENTS, make_clients, make_weights, touched
from flcore_bench.limit import limit_cases, measured_limit
from flcore_bench.many_tensors import TENSOR
from flcore_bench.peers.contender import Contender, Models
from flcore_bench.row import Goal, Row, ratio
from flcore_bench.setup import Setup, count_of
from flcore_bench.timing import Work, interleaved

FLCORE = ("flcore float32", "flcore exact (default)", "flcore float32, fresh result")
CLOSE = 1e-4
"""How far results may differ, relative to the largest: float32 sums in another order, or float64 ones."""


def main() -> None:
    """Measure, and print the rows as JSON; or `{"absent": true}` where the peer is not installed."""
    module, setup = sys.argv[1], Setup.of(sys.argv[2], int(sys.argv[3]))
    try:
        peer: Any = importlib.import_module(f"flcore_bench.peers.{module}")
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("flcore"):
            raise
        print(f"not there: {error}", file=sys.stderr)
        print(json.dumps({"absent": True}))
        return
    label = f"{peer.PACKAGE} {version(peer.PACKAGE)}"
    rows = [row for shape in ("flat", "many") for row in contest_rows(peer, label, shape, setup)]
    print(json.dumps({"absent": False, "rows": [row.to_json() for row in rows]}))


def contest_rows(peer: Any, label: str, shape: str, setup: Setup) -> list[Row]:
    """Measure the peer's ways in turn with flcore's, on the same arrays."""
    models, weights = _models(shape, setup), make_weights(CLIENTS)
    updates = list(zip(models, weights, strict=True))
    contenders: list[Contender] = peer.contenders(models, weights, setup.threads)
    _require_agreement(contenders, updates)
    cases = _flcore_cases(updates) | {contender.what: contender.work for contender in contenders}
    arrays = [array for model in models for array in model.values()]
    limits = limit_cases(arrays, touched(setup.elements), setup.threads) if shape == "flat" else {}
    taken = interleaved(limits | cases, setup.rounds)
    size = sum(array.nbytes for array in arrays)
    each = f"{count_of(setup.elements)} f32" if shape == "flat" else f"{len(models[0]):,} x 1 KB"
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
    """Return flcore's ways: float32 sums first, which the goals refer to."""
    out = {name: touched(array.size) for name, array in updates[0][0].items()}
    return {
        FLCORE[0]: lambda: flcore.aggregate(updates, accumulate="float32", out=out),
        FLCORE[1]: lambda: flcore.aggregate(updates, out=out),
        FLCORE[2]: lambda: flcore.aggregate(updates, accumulate="float32"),
    }


def _models(shape: str, setup: Setup) -> Models:
    elements = setup.elements if shape == "flat" else TENSOR * setup.tensors
    step = elements if shape == "flat" else TENSOR
    return [
        {f"layer{index}.weight": flat[start : start + step] for index, start in enumerate(range(0, elements, step))}
        for flat in make_clients(CLIENTS, elements)
    ]


def _require_agreement(contenders: list[Contender], updates: list[tuple[dict[str, Any], float]]) -> None:
    """A ratio to somebody who computes something else says nothing."""
    name = next(iter(updates[0][0]))
    wanted = flcore.aggregate([({name: model[name][:TENSOR]}, weight) for model, weight in updates])[name]
    for contender in contenders:
        found = contender.first_tensor(contender.work())[:TENSOR]
        if not np.allclose(found, wanted, rtol=0, atol=CLOSE * float(np.abs(wanted).max())):
            raise RuntimeError(f"{contender.what} averages to {found[:4]}, flcore to {wanted[:4]}")
