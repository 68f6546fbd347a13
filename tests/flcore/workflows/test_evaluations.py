"""Federated and cross-site evaluation: against NumPy, with missing sites, and killed at each change of the record."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flcore import Arrays, JobError, Task, Update, load, save
from flcore.server.history_table import read_history
from flcore.server.run_state import RunState
from tests.flcore.conftest import Function, Stage, adding
from tests.flcore.workflows.staged import (
    NAMES,
    TASKS,
    failing,
    kill_at_each_change,
    measuring,
    play,
    results_of,
    shorten_grace,
    without_timing,
)

pytestmark = pytest.mark.parametrize("stage", ["in-process"], indirect=True)

MEANS = {name: float(number) for number, name in enumerate(NAMES, start=1)}
STEPS = {name: 0.25 * number for number, name in enumerate(NAMES, start=1)}


def sites(**replaced: Function) -> dict[str, dict[str, Function]]:
    """Three sites with a step of training and a mean of their own. `validate_1` replaces a function of client-1."""
    made: dict[str, dict[str, Function]] = {
        name: {"train": adding(STEPS[name], 2.0), "validate": measuring(MEANS[name])} for name in NAMES
    }
    for name, function in replaced.items():
        task, _, number = name.partition("_")
        made[f"client-{number}"][task] = function
    return made


FED_EVAL: dict[str, Any] = {"workflow": "fed_eval", "tasks": {"validate": "metrics"}}


def test_a_checkpoint_is_evaluated_at_all_sites(stage: Stage, tmp_path: Path) -> None:
    model = {"w": np.full((2, 3), 1.75, np.float32), "b": np.zeros(4, np.float32)}
    save(model, tmp_path / "trained.safetensors")
    outcome = play(stage, tmp_path / "out", sites(), model="trained.safetensors", **FED_EVAL)
    distances = {name: abs(1.75 - mean) for name, mean in MEANS.items()}
    average = np.average(list(distances.values()), weights=list(MEANS.values()))
    results = results_of(tmp_path / "out")
    assert results.pop("average") == {"distance": pytest.approx(average, rel=1e-15)}
    assert results == {
        "workflow": "fed_eval",
        "sites": {name: {"distance": value} for name, value in distances.items()},
        "weights": MEANS,
        "missing": [],
    }
    (record,) = outcome.history
    assert record.validate == {"distance": pytest.approx(average, rel=1e-15)}
    assert (record.updates, record.train) == ({}, {})
    assert load(tmp_path / "out/model.safetensors")["w"].tolist() == model["w"].tolist(), "it is not changed"


def test_a_site_without_an_evaluation_is_missing(stage: Stage, tmp_path: Path) -> None:
    outcome = play(stage, tmp_path / "out", sites(validate_2=failing), **FED_EVAL)
    results = results_of(tmp_path / "out")
    assert results["missing"] == ["client-2"]
    assert sorted(results["sites"]) == ["client-1", "client-3"]
    assert results["average"] == {"distance": pytest.approx((1.0 * 1.0 + 3.0 * 3.0) / 4.0)}
    assert "this site fails" in outcome.history[0].failed["validate"]["client-2"]


def test_a_site_that_the_contract_names_and_that_is_not_connected_is_missing(stage: Stage, tmp_path: Path) -> None:
    there = {name: functions for name, functions in sites().items() if name != "client-2"}
    play(stage, tmp_path / "out", there, clients=list(NAMES), quorum=2, **FED_EVAL)
    results = results_of(tmp_path / "out")
    assert (sorted(results["sites"]), results["missing"]) == (["client-1", "client-3"], ["client-2"])


def test_each_site_evaluates_the_model_of_each_site(stage: Stage, tmp_path: Path) -> None:
    outcome = play(stage, tmp_path / "out", sites(), workflow="cross_site_evaluation", quorum=3)
    assert results_of(tmp_path / "out") == {
        "workflow": "cross_site_evaluation",
        "global": {at: {"distance": MEANS[at]} for at in NAMES},
        "sites": {of: {at: {"distance": abs(STEPS[of] - MEANS[at])} for at in NAMES} for of in NAMES},
        "missing": [],
    }
    (record,) = outcome.history
    assert record.sampled == NAMES
    assert sorted(record.updates) == list(NAMES)
    assert record.validate == {"distance": pytest.approx(14 / 6)}, "of the global model"
    assert record.train == {"added": pytest.approx(0.5)}, "the average of all sites"


def test_a_site_without_a_model_is_a_missing_row_and_one_without_an_evaluation_a_missing_column(
    stage: Stage, tmp_path: Path
) -> None:
    outcome = play(
        stage,
        tmp_path / "out",
        sites(train_1=failing, validate_3=failing),
        workflow="cross_site_evaluation",
        quorum=3,
    )
    results = results_of(tmp_path / "out")
    assert results["missing"] == ["client-1"]
    assert {of: sorted(row) for of, row in results["sites"].items()} == {
        of: ["client-1", "client-2"] for of in ("client-2", "client-3")
    }
    assert sorted(results["global"]) == ["client-1", "client-2"]
    assert {task: sorted(reasons) for task, reasons in outcome.history[0].failed.items()} == {
        "train": ["client-1"],
        "validate": ["client-3"],
    }


@pytest.mark.parametrize("durability", ["disk", "memory"])
@pytest.mark.parametrize("workflow", ["fed_eval", "cross_site_evaluation"])
def test_results_are_the_same_after_a_kill_at_any_change_of_the_record(
    stage: Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workflow: str, durability: str
) -> None:
    shorten_grace(monkeypatch)
    out = tmp_path / "out"
    options: dict[str, Any] = {"workflow": workflow, "quorum": 3, "durability": durability}
    with monkeypatch.context() as patch:
        changes = kill_at_each_change(patch, out, tmp_path / "killed")
        play(stage, out, sites(validate_2=failing), **options)
    expected = without_timing(read_history(out))
    assert len(changes) > 2
    for number in range(0, len(changes), 1 if workflow == "fed_eval" else 4):
        copy, asked = tmp_path / "killed" / str(number), list[str]()
        play(stage, copy, sites(validate_2=failing, validate_1=noting(asked)), **options)
        assert (copy / "results.json").read_bytes() == (out / "results.json").read_bytes(), number
        assert without_timing(read_history(copy)) == expected
        if workflow == "fed_eval" and "end_call" in changes[1:number]:
            assert asked == [], "an evaluation on record is not made again"


def noting(asked: list[str]) -> Function:
    def validate(model: Arrays, task: Task) -> Update:
        asked.append(task.name)
        return measuring(MEANS["client-1"])(model, task)

    return validate


TWO_SETS = """
def flow(control):
    for number in control.rounds():
        clients = control.sample()
        found = control.evaluate(control.initial_model, clients)
        control.save_results({"round": number, "weights": {name: each.weight for name, each in found.items()}})
"""


def test_a_workflow_of_the_user_saves_results_in_each_round(stage: Stage, tmp_path: Path) -> None:
    (tmp_path / "flow.py").write_text(TWO_SETS)
    play(stage, tmp_path / "out", sites(), workflow="flow.py:flow", rounds=3)
    assert results_of(tmp_path / "out") == {"round": 3, "weights": MEANS}
    assert [path.name for path in (tmp_path / "out").glob(".results*")] == []


@pytest.mark.parametrize("value", ["float('nan')", "{1, 2}", "control"])
def test_results_that_are_no_json_are_refused(stage: Stage, tmp_path: Path, value: str) -> None:
    (tmp_path / "flow.py").write_text(
        f"def flow(control):\n    for _ in control.rounds():\n        control.save_results({{'value': {value}}})\n"
    )
    with pytest.raises(JobError, match=r"control\.save_results: expected JSON values with finite numbers"):
        play(stage, tmp_path / "out", sites(), workflow="flow.py:flow")
    assert not (tmp_path / "out/results.json").exists()


@pytest.mark.parametrize(("task", "told"), [("train", "expected a task that returns metrics"), ("test", "no task")])
def test_a_task_that_cannot_be_evaluated_is_refused(stage: Stage, tmp_path: Path, task: str, told: str) -> None:
    (tmp_path / "flow.py").write_text(
        "def flow(control):\n    for _ in control.rounds():\n"
        f"        control.evaluate(control.initial_model, control.sample(), {task!r})\n"
    )
    with pytest.raises(JobError, match=told):
        play(stage, tmp_path / "out", sites(), TASKS, workflow="flow.py:flow")


def test_without_a_directory_nothing_is_written(stage: Stage, tmp_path: Path) -> None:
    stage.open(wait_for=3, **FED_EVAL)
    for name, functions in sites().items():
        stage.client(name, validate=functions["validate"])
    assert stage.result().history[0].validate
    assert list(tmp_path.rglob("results.json")) == []


def test_a_fresh_run_moves_earlier_results_aside(stage: Stage, tmp_path: Path) -> None:
    out = tmp_path / "out"
    play(stage, out, sites(), **FED_EVAL)
    earlier = (out / "results.json").read_bytes()
    play(stage, out, sites(validate_2=failing), fresh=True, **FED_EVAL)
    assert (tmp_path / "out.1/results.json").read_bytes() == earlier
    assert results_of(out)["missing"] == ["client-2"]


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="a descriptor's file is looked up in /proc")
def test_results_are_on_the_disk_before_the_record_says_so(
    stage: Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[str] = []
    partial, directory = ".results.json.partial", "out"

    def noting(name: str, original: Any, label: Callable[..., str]) -> Callable[..., Any]:
        def noted(*arguments: Any) -> Any:
            result = original(*arguments)
            if label(*arguments) in (partial, directory, "save_results"):
                steps.append(f"{name} {label(*arguments)}")
            return result

        return noted

    def file_name(descriptor: int) -> str:
        return Path(f"/proc/self/fd/{descriptor}").readlink().name

    monkeypatch.setattr(os, "fsync", noting("sync", os.fsync, file_name))
    monkeypatch.setattr(Path, "replace", noting("replace", Path.replace, lambda path, _: path.name))
    monkeypatch.setattr(RunState, "end_call", noting("record", RunState.end_call, lambda _, call: call.kind))
    play(stage, tmp_path / "out", sites(), **FED_EVAL)
    first = steps.index(f"sync {partial}")
    assert steps[first : first + 4] == [f"sync {partial}", f"replace {partial}", "sync out", "record save_results"]
