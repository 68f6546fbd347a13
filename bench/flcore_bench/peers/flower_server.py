"""Flower's server app: FedAvg over all clients, with the time of every round and the process's own peak memory."""

import json
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg


class TimedFedAvg(FedAvg):  # type: ignore[misc]  # it has a type only where Flower is installed
    """FedAvg as it is; a round lasts from choosing its clients to having the mean."""

    def __init__(self, clients: int) -> None:
        super().__init__(fraction_evaluate=0.0, min_train_nodes=clients, min_available_nodes=clients)
        self.seconds: list[float] = []
        self._clients = clients
        self._started = 0.0

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Note when the round begins."""
        self._started = time.monotonic()
        messages: Iterable[Message] = super().configure_train(server_round, arrays, config, grid)
        return messages

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Note how long the round took; a round without every client's model is none."""
        answers = list(replies)
        if len(answers) != self._clients or any(answer.has_error() for answer in answers):
            raise RuntimeError(f"round {server_round} is not one of {self._clients} clients: {answers}")
        arrays, metrics = super().aggregate_train(server_round, answers)
        self.seconds.append(time.monotonic() - self._started)
        return arrays, metrics


def main(grid: Grid, context: Context) -> None:
    """Run the rounds, see that the mean of equal models is that model, and write the figures."""
    config: Any = context.run_config
    model = np.random.default_rng(0).random(config["size"] // 4, np.float32)
    strategy = TimedFedAvg(config["clients"])
    arrays = ArrayRecord({"weight": Array(model)})
    head = model[:1000].copy()
    del model
    result = strategy.start(grid, arrays, num_rounds=config["rounds"], timeout=config["timeout"])
    np.testing.assert_allclose(result.arrays["weight"].numpy()[:1000], head, rtol=1e-5)
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    peak = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
    Path(config["result"]).write_text(json.dumps({"seconds": strategy.seconds, "peak_bytes": peak}), encoding="utf-8")


app = ServerApp()
app.main()(main)
