"""Whole rounds of NVIDIA FLARE: its simulator with the NumPy recipe of FedAvg, a process for each client.

The server's own log says when a round began and when its mean was there; saving the model to disk, which it then does
after every round, is not counted.
"""

import json
import os
import re
import sys
import tempfile
import threading
from datetime import datetime
from importlib.metadata import version
from pathlib import Path

import numpy as np

from flcore_bench.child import MeasurementFailed
from flcore_bench.peers.offspring import Offspring

CLIENT = Path(__file__).with_name("nvflare_echo.py")
JOB = "echo"
TIMEOUT_S = 900.0
SERVER = "simulator.simulator "
"""In the command line of the process that hosts the server, and not in those of the clients."""


def main() -> None:
    """Run rounds of a model of so many bytes with so many clients, and print the figures."""
    size, clients, rounds = map(int, sys.argv[1:4])
    try:
        from nvflare.app_common.np.recipes.fedavg import NumpyFedAvgRecipe
        from nvflare.recipe import SimEnv
    except ModuleNotFoundError as error:
        print(f"not there: {error}", file=sys.stderr)
        print(json.dumps({"absent": True}))
        return
    with tempfile.TemporaryDirectory(prefix="flcore-bench-", ignore_cleanup_errors=True) as name, Offspring() as family:
        os.environ.update(HOME=name, TMPDIR=name)
        os.environ.pop("PYTHONPATH", None)
        tempfile.tempdir = name
        home = Path(name)
        model = np.random.default_rng(0).random(size // 4, np.float32)
        np.save(home / "model.npy", model)
        recipe = NumpyFedAvgRecipe(
            name=JOB,
            initial_ckpt=str(home / "model.npy"),
            min_clients=clients,
            num_rounds=rounds,
            train_script=str(CLIENT),
        )
        alarm = threading.Timer(TIMEOUT_S, family.end)
        alarm.start()
        try:
            recipe.execute(SimEnv(num_clients=clients, num_threads=clients, workspace_root=name))
        finally:
            alarm.cancel()
        server = home / JOB / "server"
        seconds = seconds_of((server / "log.txt").read_text(encoding="utf-8"), clients)
        if len(seconds) != rounds:
            raise MeasurementFailed(f"NVFLARE ended after {len(seconds)} of {rounds} rounds")
        found = np.load(server / "simulate_job" / "models" / "server.npy", mmap_mode="r")
        np.testing.assert_allclose(found[:1000], model[:1000], rtol=1e-5)
        peaks = {"server process": family.peak_bytes(SERVER)}
    print(json.dumps({"absent": False, "version": version("nvflare"), "seconds": seconds[1:], "peaks": peaks}))


def seconds_of(log: str, clients: int) -> list[float]:
    """Return how long each round took from its start to the mean of all clients' models, by the server's log."""
    seconds: list[float] = []
    now = started = datetime.min
    answered = 0
    for line in log.splitlines():
        if stamp := re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3}", line):
            now = datetime.strptime(stamp[0], "%Y-%m-%d %H:%M:%S,%f")  # noqa: DTZ007 - differences are all we take
        if re.search(r"\bRound \d+ started\.", line):
            started, answered = now, 0
        elif "FedAvg - INFO" in line and " - Aggregated " in line:
            answered += 1
        elif line.endswith("Start persist model on server."):
            if answered != clients:
                raise MeasurementFailed(f"a round of NVFLARE has {answered} models of {clients} clients")
            seconds.append((now - started).total_seconds())
    return seconds


if __name__ == "__main__":
    main()
