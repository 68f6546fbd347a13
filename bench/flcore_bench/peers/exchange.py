"""A peer with its own mean and with flcore's adapter in its place, in turn in one process, on its own messages."""

import importlib
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

import flcore
from flcore_bench.clients import CLIENTS, make_clients, make_weights
from flcore_bench.row import Goal, Row, ratio
from flcore_bench.setup import Setup, count_of
from flcore_bench.timing import Work, interleaved

Models = list[dict[str, npt.NDArray[Any]]]
HEAD = 256
CLOSE = 1e-4


@dataclass(frozen=True)
class Exchange:
    """One way in which a peer hands results to its aggregator.

    `own` is what the peer does by itself, `ours` the same with the adapter; each returns a model, whose first tensor
    `first_tensor` takes out. `goals`: how many times as long the peer's own should take at least.
    """

    what: str
    own: Work
    ours: dict[str, Work]
    first_tensor: Callable[[Any], npt.NDArray[Any]]
    goals: dict[str, float] = field(default_factory=dict)


def main() -> None:
    """Measure the exchanges of a peer's file, and print the rows as JSON."""
    module, setup = sys.argv[1], Setup.of(sys.argv[2], int(sys.argv[3]))
    peer: Any = importlib.import_module(f"flcore_bench.peers.{module}")
    models = [{"weight": flat} for flat in make_clients(CLIENTS, setup.elements)]
    weights = [float(round(weight)) for weight in make_weights(CLIENTS)]
    rows = [row for each in peer.exchanges(models, weights) for row in exchange_rows(each, models, weights, setup)]
    print(json.dumps([row.to_json() for row in rows]))


def exchange_rows(exchange: Exchange, models: Models, weights: list[float], setup: Setup) -> list[Row]:
    """Measure one exchange."""
    expected = flcore.aggregate([({"h": m["weight"][:HEAD]}, w) for m, w in zip(models, weights, strict=True)])["h"]
    works = {"its own mean": exchange.own, **exchange.ours}
    for what, work in works.items():
        found = exchange.first_tensor(work())[:HEAD]
        if not np.allclose(found, expected, rtol=0, atol=CLOSE * float(np.abs(expected).max())):
            raise RuntimeError(f"{exchange.what}, {what}: {found[:4]}, expected {expected[:4]}")
    taken = interleaved(works, setup.rounds)
    size = sum(array.nbytes for model in models for array in model.values())
    rows = []
    for what in works:
        times = ratio(taken["its own mean"], taken[what])
        goals = [Goal("its own", times, exchange.goals[what])] if what in exchange.goals else []
        against = {} if what == "its own mean" else {"its own": times}
        named = f"{exchange.what}, {CLIENTS} x {count_of(setup.elements)} f32: {what}"
        rows.append(Row(named, taken[what], size, against=against, goals=goals))
    return rows
