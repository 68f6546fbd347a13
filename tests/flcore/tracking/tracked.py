"""A small real run with a best model, which trackers follow."""

from pathlib import Path

import flcore
from flcore import Job, Outcome
from flcore.job.parsing import parse_contract
from flcore.status import StatusBoard
from flcore.status.observed_run import ObservedRun, OpenObserver

ROUNDS = 3
BEST_ROUND = 2

CODE = f"""
import numpy as np
from flcore import Update

def initial_model(seed):
    return {{"w": np.zeros(1000, np.float32)}}

def train(model, task):
    return Update({{"w": model["w"] + np.float32(1)}}, weight=1.0, metrics={{"loss": 1.0 / task.round}})

def validate(model, task):
    return Update(weight=1.0, metrics={{"distance": abs(float(model["w"][0]) - {BEST_ROUND})}})
"""


def tracked_run(directory: Path, open_observer: OpenObserver, name: str = "tracked") -> Outcome:
    """Run a job of two clients and three rounds, the second of which has the best model.

    Args:
        directory: Gets the job's code in `job` and the run in `run`.
        open_observer: Opens what tracks the run.
        name: The contract's name.
    """
    (directory / "job").mkdir(parents=True)
    (directory / "job/code.py").write_text(CODE)
    contract = parse_contract(
        {
            "name": name,
            "clients": ["north", "south"],
            "server": {"model": "code.py:initial_model", "rounds": ROUNDS, "best": "distance:min"},
            "client": {"executor": "code.py", "hyperparameters": {"lr": 0.1}},
            "tasks": {"train": {"returns": "weights"}, "validate": {"returns": "metrics"}},
        },
        "the test's contract",
    )
    run = ObservedRun(name, contract, StatusBoard.of(contract), directory / "run")
    with open_observer(run) as observe:
        return flcore.run(Job(contract, directory / "job"), workers=0, out=directory / "run", observe=observe)
