"""Workflows of several kinds, killed after each step of their server: they end with the same models and values."""

import json
import os
import re
import shutil
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from flcore.server.recorded_run import Durability
from tests.faults.copied_runs import Federation, history_of, is_over, results, rounds
from tests.faults.hooks import WatchedConnection, without_syncs

DOCS = Path(__file__).parents[2] / "docs/your-job.md"

_MOMENTUM = re.search(r"```python\n(MOMENTUM = .*?)```", DOCS.read_text(), re.DOTALL)
assert _MOMENTUM is not None

NOTING = """
import numpy as np

def size(model):
    return float(sum(np.abs(array.astype(np.float64)).sum() for array in model.arrays().values()))

"""

DRIFT = """
def flow(control):
    for _ in control.remaining_rounds():
        old, clients = control.last_model, control.sample()
        mean = control.train(old, clients).aggregate()
        control.publish(mean, {"accuracy": 0.5})
        control.validate(mean, clients)
        control.state["drift"] = control.state.get("drift", 0.0) + abs(size(mean) - size(old))
        control.state["seen"] = [*control.state.get("seen", []), size(control.last_model)]
    control.save_results({"drift": control.state["drift"], "seen": control.state["seen"]})
"""

TWO_TRAINS = """
def flow(control):
    a = control.initial_model
    for _ in control.rounds():
        clients = control.sample()
        a = control.train(a, clients).aggregate()
        updates = control.train(a, clients, "head")
        control.publish(a, {"accuracy": 0.5})
        control.validate(a, clients)
        a = updates.aggregate()
        control.publish(a, control.validate(a, clients))
"""

PUBLISH_FIRST = """
def flow(control):
    values = []
    for number in control.rounds():
        clients = control.sample()
        model = control.train(control.last_model, clients).aggregate()
        control.publish(model, {"accuracy": 0.1 * number})
        values.append(control.validate(model, clients)["mean"])
    control.save_results(values)
"""

TWO_PUBLICATIONS = """
def flow(control):
    values = []
    for _ in control.remaining_rounds():
        clients = control.sample()
        model = control.train(control.last_model, clients).aggregate()
        control.publish(model, control.validate(model, clients))
        values = control.state.setdefault("values", [])
        values.append(size(control.last_model))
        model = control.train(control.last_model, clients, "head").aggregate()
        control.publish(model, {"accuracy": 0.6})
        values.append(size(control.last_model))
    control.save_results(control.state["values"])
"""

EVERY_FIFTH = """
def flow(control):
    model = control.initial_model
    for number in control.rounds():
        clients = control.sample()
        model = control.train(model, clients).aggregate()
        metrics = control.validate(model, clients)
        if number % 5 == 0 or number == 7:
            control.publish(model, metrics)
"""

VALUES = """
import ml_dtypes
import numpy as np

def flow(control):
    for _ in control.remaining_rounds():
        clients = control.sample()
        mean = control.train(control.last_model, clients).aggregate().arrays()
        half = control.state.get("half", mean["w"].astype(ml_dtypes.bfloat16))
        scale = control.state.get("scale", np.float64(1.0))
        control.state["half"] = mean["w"].astype(ml_dtypes.bfloat16)
        control.state["scale"] = 1.0 / np.sqrt(np.mean(np.square(mean["w"], dtype=np.float64)))
        step = (mean["w"] + half.astype(np.float32)) * scale  # in float64
        model = control.model_of({**mean, "w": (mean["w"] + step / 3).astype(np.float32)})
        control.publish(model, control.validate(model, clients))
"""

WORKFLOWS = {
    "momentum": (_MOMENTUM[1].replace("fed_avg_m", "flow"), 3, 2),
    "drift": (NOTING + DRIFT, 3, 2),
    "two trains a round": (TWO_TRAINS, 3, 2),
    "published before the validation": (PUBLISH_FIRST, 3, 2),
    "two publications a round": (NOTING + TWO_PUBLICATIONS, 3, 2),
    "published every fifth round": (EVERY_FIFTH, 7, 5),
    "values of many types": (VALUES, 3, 2),
}
"""Sources of workflows, their rounds, and the round in which the small form kills, after each call."""


@contextmanager
def reached_after_each_step(reach: Callable[[], None]) -> Iterator[None]:
    """Call a function after each change of the record, and each change of files by the workflow's thread."""
    workflow = threading.get_ident()

    def after(original: Callable[..., Any], *, in_any_thread: bool = False) -> Callable[..., Any]:
        def wrapped(*arguments: Any, **named: Any) -> Any:
            result = original(*arguments, **named)
            if in_any_thread or threading.get_ident() == workflow:
                reach()
            return result

        return wrapped

    commit = after(WatchedConnection.commit_changes, in_any_thread=True)
    with (
        mock.patch.object(WatchedConnection, "commit_changes", commit),
        mock.patch.object(os, "replace", after(os.replace)),
        mock.patch.object(os, "unlink", after(os.unlink)),
        mock.patch.object(shutil, "rmtree", after(shutil.rmtree)),
    ):
        yield


def copies_of(federation: Federation, out: Path) -> list[Path]:
    """Run, and return a copy of the directory after each step."""
    copies: list[Path] = []
    lock = threading.RLock()
    is_copying = False

    def copy() -> None:
        nonlocal is_copying
        with lock:
            if is_copying or not (out / "state.sqlite").exists():
                return
            is_copying = True
            copies.append(federation.directory / f"{out.name}-{len(copies) + 1:03d}")
            shutil.copytree(out, copies[-1], ignore=shutil.ignore_patterns("*status.json*"))
            is_copying = False

    with reached_after_each_step(copy):
        federation.run(out)
    return copies


def difference(federation: Federation, run: Path, undisturbed: Path) -> str:
    """Continue a copy, and return how it differs from the undisturbed run; empty if it does not."""
    try:
        is_over(federation, run)
    except Exception as error:  # noqa: BLE001 - the other copies are examined all the same
        return f"it does not go on: {type(error).__name__}: {error}"
    wrong = []
    if results(run) != results(undisturbed):
        wrong.append("the models differ")
    if rounds(history_of(run)) != rounds(history_of(undisturbed)):
        wrong.append("the history differs")
    if _values(run) != _values(undisturbed):
        wrong.append(f"values: expected {_values(undisturbed)}, got {_values(run)}")
    return "; ".join(wrong)


def _values(run: Path) -> Any:
    path = run / "results.json"
    return json.loads(path.read_text()) if path.exists() else None


def calls_of(run: Path) -> tuple[int, str]:
    """Return the number of rounds that are over by the record of a copy, and describe its calls."""
    with sqlite3.connect(run / "state.sqlite") as connection:
        calls = connection.execute("SELECT kind FROM calls ORDER BY number").fetchall()
        ((over,),) = connection.execute("SELECT count(*) FROM rounds")
    connection.close()
    return over, f"{len(calls)} calls, the last is {calls[-1][0] if calls else 'none'}; {over} rounds are over"


SMALL = [pytest.param(each, False, id=each) for each in ("disk", "memory")]
FULL = [
    pytest.param(each, True, id=f"{each}-all", marks=[pytest.mark.stress, pytest.mark.timeout(1800)])
    for each in ("disk", "memory")
]


@pytest.mark.long
@pytest.mark.parametrize("name", WORKFLOWS)
@pytest.mark.parametrize(("durability", "is_full"), SMALL + FULL)
def test_a_workflow_that_is_killed_after_any_step_ends_as_if_undisturbed(
    tmp_path: Path, kernels: None, name: str, durability: Durability, is_full: bool
) -> None:
    source, rounds_, killed_in = WORKFLOWS[name]
    with without_syncs():
        federation = Federation(tmp_path, "batch", durability, workflow=source, rounds=rounds_)
        undisturbed = tmp_path / "undisturbed"
        federation.run(undisturbed)
        assert (undisturbed / "model.safetensors").exists()
        copies = copies_of(federation, tmp_path / "run")
        assert len(copies) > 8 * rounds_
        described = {copy: calls_of(copy) for copy in copies}
        last_of_call = {text: copy for copy, (over, text) in described.items() if over == killed_in - 1}
        failed = {}
        for copy in copies if is_full else last_of_call.values():
            if found := difference(federation, copy, undisturbed):
                failed[f"{copy.name}: {described[copy][1]}"] = found
    assert not failed
