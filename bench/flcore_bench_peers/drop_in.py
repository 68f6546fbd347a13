"""A framework's aggregation with its own mean and with flcore's adapter: interleaved, on the framework's messages."""

import importlib
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from flcore_bench.report import Goal, Row, ratio
from flcore_bench.timing import Work, interleaved
from flcore_bench.workload import CLIENTS, Sizes, format_count, make_clients, make_weights

import flcore
from flcore_bench_peers.contest import Models

HEAD = 256
TOLERANCE = 1e-4


@dataclass(frozen=True)
class DropIn:
    """An aggregation of a framework in which flcore's adapter can replace the mean.

    Attributes:
        what: The framework, its version and the aggregation.
        own: The aggregation with the framework's own mean. Returns a model.
        adapters: The same with flcore's adapter, by the adapter's options.
        first_tensor: Returns the first tensor of a model.
        goals: How many times as long the framework's own mean takes at least, by the adapter's options.
    """

    what: str
    own: Work
    adapters: dict[str, Work]
    first_tensor: Callable[[Any], npt.NDArray[Any]]
    goals: dict[str, float] = field(default_factory=dict)


def main() -> None:
    """Measure all drop-ins of a framework's module, and print the rows as JSON."""
    module, sizes = sys.argv[1], Sizes.of(sys.argv[2], int(sys.argv[3]))
    peer: Any = importlib.import_module(f"flcore_bench_peers.{module}")
    models = [{"weight": flat} for flat in make_clients(CLIENTS, sizes.elements)]
    weights = [float(round(weight)) for weight in make_weights(CLIENTS)]
    rows = [row for each in peer.drop_ins(models, weights) for row in drop_in_rows(each, models, weights, sizes)]
    print(json.dumps([row.to_json() for row in rows]))


def drop_in_rows(drop_in: DropIn, models: Models, weights: list[float], sizes: Sizes) -> list[Row]:
    """Measure one drop-in, after a check that all means agree."""
    expected = flcore.aggregate([({"h": m["weight"][:HEAD]}, w) for m, w in zip(models, weights, strict=True)])["h"]
    works = {"its own mean": drop_in.own, **drop_in.adapters}
    for what, work in works.items():
        found = drop_in.first_tensor(work())[:HEAD]
        if not np.allclose(found, expected, rtol=0, atol=TOLERANCE * float(np.abs(expected).max())):
            raise RuntimeError(f"{drop_in.what}, {what}: {found[:4]}, expected {expected[:4]}")
    taken = interleaved(works, sizes.rounds)
    size = sum(array.nbytes for model in models for array in model.values())
    rows = []
    for what in works:
        times = ratio(taken["its own mean"], taken[what])
        goals = [Goal("its own", times, drop_in.goals[what])] if what in drop_in.goals else []
        against = {} if what == "its own mean" else {"its own": times}
        named = f"{drop_in.what}, {CLIENTS} x {format_count(sizes.elements)} f32: {what}"
        rows.append(Row(named, taken[what], size, against=against, goals=goals))
    return rows
