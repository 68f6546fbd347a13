"""Whole rounds of NVIDIA FLARE, with its own mean or with flcore's: its simulator with the NumPy recipe of FedAvg.

Durations come from the server's log: from a round's start to its mean. Saving the model afterwards does not count.
"""

import json
import os
import re
import sys
import tempfile
import threading
from datetime import datetime
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from flcore_bench.process import MeasurementFailed

from flcore_bench_peers.process_tree import ProcessTree

CLIENT = Path(__file__).with_name("nvflare_client.py")
JOB = "echo"
TIMEOUT_S = 900.0
SERVER = "simulator.simulator "
"""A part of the server process's command line that the clients' ones do not have."""


def main() -> None:
    """Run rounds (arguments: bytes, clients, rounds, aggregation), and print the figures as JSON."""
    if find_spec("nvflare") is None:
        print(json.dumps({"absent": True}))
        return
    size, clients, rounds = map(int, sys.argv[1:4])
    figures = run_rounds(size, clients, rounds, sys.argv[4])
    print(json.dumps({"absent": False, "version": version("nvflare")} | figures))


def run_rounds(size: int, clients: int, rounds: int, aggregation: str) -> dict[str, object]:
    """Return each round's seconds, those in aggregation, and the server process's peak. The first round warms up.

    `aggregation` is "own", or flcore's accumulator: "float32" or "exact".
    """
    model = np.random.default_rng(0).random(size // 4, np.float32)
    with tempfile.TemporaryDirectory(prefix="flcore-bench-", ignore_cleanup_errors=True) as name, ProcessTree() as tree:
        home = Path(name)
        np.save(home / "model.npy", model)
        alarm = threading.Timer(TIMEOUT_S, tree.kill)
        alarm.start()
        try:
            simulate(home, clients, rounds, aggregation)
        finally:
            alarm.cancel()
        server = home / JOB / "server"
        log = (server / "log.txt").read_text(encoding="utf-8")
        seconds, aggregating = seconds_of(log, clients), aggregating_of(log)
        if not len(seconds) == len(aggregating) == rounds:
            raise MeasurementFailed(f"NVFLARE ended after {len(seconds)} of {rounds} rounds")
        found = np.load(server / "simulate_job" / "models" / "server.npy", mmap_mode="r")
        np.testing.assert_allclose(found[:1000], model[:1000], rtol=1e-5)
        peaks = {"server": tree.peak_bytes(SERVER)}
        return {"seconds": seconds[1:], "aggregation": aggregating[1:], "peaks": peaks}


def simulate(home: Path, clients: int, rounds: int, aggregation: str) -> None:
    """Run the simulator in `home`, starting from the model there."""
    from nvflare.app_common.np.recipes.fedavg import NumpyFedAvgRecipe
    from nvflare.recipe import SimEnv

    from flcore_bench_peers.nvflare_timed import TimedFlcoreAggregator, TimedOwnMean

    os.environ.pop("PYTHONPATH", None)
    kept = os.environ.get("FLCORE_CACHE_DIR", str(Path.home() / ".cache" / "flcore"))
    os.environ |= {"HOME": str(home), "TMPDIR": str(home), "FLCORE_CACHE_DIR": kept}
    tempfile.tempdir = str(home)
    recipe = NumpyFedAvgRecipe(
        name=JOB,
        initial_ckpt=str(home / "model.npy"),
        min_clients=clients,
        num_rounds=rounds,
        train_script=str(CLIENT),
        aggregator=TimedOwnMean() if aggregation == "own" else TimedFlcoreAggregator(aggregation),
    )
    recipe.execute(SimEnv(num_clients=clients, num_threads=clients, workspace_root=str(home)))


def seconds_of(log: str, clients: int) -> list[float]:
    """Return from the server's log how long each round took, from its start to the mean."""
    seconds: list[float] = []
    now = started = datetime.fromtimestamp(0)  # noqa: DTZ006 - differences are all we take
    answered = 0
    for line in log.splitlines():
        if stamp := re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3}", line):
            now = datetime.strptime(stamp[0], "%Y-%m-%d %H:%M:%S,%f")  # noqa: DTZ007 - as above
        if re.search(r"\bRound \d+ started\.", line):
            started, answered = now, 0
        elif "FedAvg - INFO" in line and " - Aggregated " in line:
            answered += 1
        elif line.endswith("Start persist model on server."):
            if answered != clients:
                raise MeasurementFailed(f"a round of NVFLARE has {answered} models of {clients} clients")
            seconds.append((now - started).total_seconds())
    return seconds


def aggregating_of(log: str) -> list[float]:
    """Return from the server's log the seconds per round in aggregation."""
    return [float(found) for found in re.findall(r"seconds in aggregation: ([\d.]+)", log)]


if __name__ == "__main__":
    main()
