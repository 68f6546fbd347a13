"""Flower's server app: FedAvg over all clients. It writes each round's duration and its peak memory to a file."""

import json
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord
from flwr.serverapp import Grid, ServerApp, strategy


class TimedReplies:
    """Replies, with the seconds spent waiting for them."""

    def __init__(self, replies: Iterable[Message]) -> None:
        self._replies = iter(replies)
        self.seconds, self.errors, self.count = 0.0, 0, 0

    def __iter__(self) -> Iterator[Message]:
        return self

    def __next__(self) -> Message:
        started = time.monotonic()
        try:
            reply = next(self._replies)
        finally:
            self.seconds += time.monotonic() - started
        self.count += 1
        self.errors += reply.has_error()
        return reply


def timed(base: Any) -> Any:
    """Return a subclass of a FedAvg that records each round's duration, and that of its aggregation."""

    class Timed(base):  # type: ignore[misc]
        def __init__(self, clients: int, **keywords: Any) -> None:
            super().__init__(fraction_evaluate=0.0, min_train_nodes=clients, min_available_nodes=clients, **keywords)
            self.seconds: list[float] = []
            self.aggregation: list[float] = []
            self._clients = clients
            self._started = 0.0

        def configure_train(
            self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
        ) -> Iterable[Message]:
            self._started = time.monotonic()
            messages: Iterable[Message] = super().configure_train(server_round, arrays, config, grid)
            return messages

        def aggregate_train(
            self, server_round: int, replies: Iterable[Message]
        ) -> tuple[ArrayRecord | None, MetricRecord | None]:
            """Aggregate, and raise unless every client's model arrived."""
            waiting, began = TimedReplies(replies), time.monotonic()
            given = list(waiting) if isinstance(replies, list) else waiting
            arrays, metrics = super().aggregate_train(server_round, given)
            ended = time.monotonic()
            if waiting.count != self._clients or waiting.errors:
                raise RuntimeError(f"round {server_round}: {waiting.count} replies, {waiting.errors} of them errors")
            self.seconds.append(ended - self._started)
            self.aggregation.append(ended - began - waiting.seconds)
            return arrays, metrics

    return Timed


def main(grid: Grid, context: Context) -> None:
    """Run the rounds, check that the mean of equal models is that model, and write the figures."""
    config: Any = context.run_config
    model = np.random.default_rng(0).random(config["size"] // 4, np.float32)
    chosen: Any
    if config["aggregation"] == "own":
        chosen = timed(strategy.FedAvg)(config["clients"])
    else:
        from flcore.adapters.flower import FedAvg, StreamingGrid

        chosen = timed(FedAvg)(config["clients"], accumulate=config["aggregation"])
        grid = StreamingGrid(grid)
    arrays = ArrayRecord({"weight": Array(model)})
    head = model[:1000].copy()
    del model
    result = chosen.start(grid, arrays, num_rounds=config["rounds"], timeout=config["timeout"])
    np.testing.assert_allclose(result.arrays["weight"].numpy()[:1000], head, rtol=1e-5)
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    peak = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
    figures = {"seconds": chosen.seconds, "aggregation": chosen.aggregation, "peak_bytes": peak}
    Path(config["result"]).write_text(json.dumps(figures), encoding="utf-8")


app = ServerApp()
app.main()(main)
