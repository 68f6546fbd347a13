"""Runs of a workflow on a stage, whole and after a kill at each change of the run's record."""

import json
import shutil
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from flcore import Arrays, Outcome, Task, Update
from flcore.server.run_state import RunState
from tests.flcore.conftest import Function, Stage

NAMES = ("client-1", "client-2", "client-3")
TASKS = {"train": "weights", "validate": "metrics"}


def measuring(site_mean: float) -> Function:
    """A client that measures how far a model is from its own mean. Its weight is that mean."""

    def validate(model: Arrays, _: Task) -> Update:
        return Update(weight=site_mean, metrics={"distance": abs(float(model["w"].mean()) - site_mean)})

    return validate


def failing(model: Arrays, task: Task) -> Update:
    """A client that always fails."""
    raise ValueError("this site fails")


def play(
    stage: Stage,
    out: Path,
    sites: Mapping[str, Mapping[str, Function]],
    tasks: Mapping[str, str] = TASKS,
    **options: Any,
) -> Outcome:
    """Run a job to its end with the functions of each site."""
    given: dict[str, Any] = {"wait_for": len(sites), "out": out, "durability": "disk"}
    stage.open(**(given | {"tasks": tasks} | options))
    for name, functions in sites.items():
        stage.start_client(name, functions, stage.connect())
    outcome = stage.result()
    stage.close()
    return outcome


def _copy_live(source: Path, target: Path) -> None:
    """Copy the directory of a run. Other threads may remove files meanwhile."""
    try:
        shutil.copytree(source, target, ignore=shutil.ignore_patterns("*status.json*"))
    except shutil.Error as error:
        if any(Path(path).exists() for path, *_ in error.args[0]):
            raise


def kill_at_each_change(monkeypatch: pytest.MonkeyPatch, source: Path, target: Path) -> list[str]:
    """Copy a run's directory after each change of its record, to `target/0` and so on.

    Returns a list that gets the method of each change.
    """
    changes: list[str] = []
    standing = threading.Lock()

    def watch(method: str) -> None:
        original = getattr(RunState, method)

        def copying(*arguments: Any) -> None:
            with standing:
                original(*arguments)
                if Path(arguments[0].path).parent == source:
                    _copy_live(source, target / str(len(changes)))
                    changes.append(method)

        monkeypatch.setattr(RunState, method, copying)

    for method in ("add_answer", "end_call", "end_round"):
        watch(method)
    return changes


def results_of(out: Path) -> dict[str, Any]:
    """The content of results.json."""
    results: dict[str, Any] = json.loads((out / "results.json").read_text())
    return results


def shorten_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let clients of an earlier process that do not come back be missed soon."""
    monkeypatch.setattr("flcore.server.serve.RETURN_GRACE_S", 1.0)
    monkeypatch.setattr("flcore.server.task_runner.DEFAULT_GRACE_S", 1.0)


def without_timing(history: Sequence[Any]) -> list[dict[str, Any]]:
    """The records of a run but for what depends on time, or on the traffic of the process."""
    varying = {"seconds", "bytes_sent", "bytes_received", "updates", "asked_again"}
    return [
        {key: value for key, value in vars(record).items() if key not in varying} | {"updates": sorted(record.updates)}
        for record in history
    ]
