"""Federated averaging with early stopping: when it ends, what the history says, and that it resumes."""

from pathlib import Path
from typing import Any

import pytest

from flcore import Arrays, JobError, Task, Update, load
from flcore.job.parsing import parse_contract
from flcore.server.early_stopping import EarlyStopping
from flcore.server.events import StoppedEarly
from flcore.server.history_table import read_history
from tests.flcore.conftest import Stage, adding
from tests.flcore.workflows.staged import NAMES, kill_at_each_change, play, shorten_grace, without_timing

staged = pytest.mark.parametrize("stage", ["in-process"], indirect=True)


def scripted(values: list[float]) -> Any:
    """A client whose accuracy in round n is the n-th value."""

    def validate(_: Arrays, task: Task) -> Update:
        return Update(weight=1.0, metrics={"accuracy": values[task.round - 1]})

    return validate


def sites(values: list[float]) -> dict[str, dict[str, Any]]:
    return {name: {"train": adding(0.5), "validate": scripted(values)} for name in NAMES}


VALUES = [0.1, 0.6, 0.5, 0.6, 0.55, 0.97, 0.98, 0.99]


@staged
@pytest.mark.parametrize(
    ("options", "rounds", "reason"),
    [
        ({"target": "accuracy:0.6"}, 2, "accuracy 0.6 has reached the target 0.6"),
        ({"target": "accuracy:0.97"}, 6, "accuracy 0.97 has reached the target 0.97"),
        ({"patience": 2}, 4, "accuracy has not improved for 2 rounds; the best is 0.6"),
        ({"patience": 3, "target": "accuracy:0.9"}, 5, "accuracy has not improved for 3 rounds; the best is 0.6"),
        ({"patience": 4, "target": "accuracy:0.995"}, 8, ""),
        ({"target": "accuracy:0.99"}, 8, ""),  # in the last round: nothing ends early
    ],
)
def test_a_run_ends_at_the_round_and_says_why(
    stage: Stage, tmp_path: Path, options: dict[str, Any], rounds: int, reason: str
) -> None:
    outcome = play(stage, tmp_path / "out", sites(VALUES), rounds=8, best="accuracy:max", **options)
    assert len(outcome.history) == rounds
    assert [record.stopped for record in outcome.history] == [""] * (rounds - 1) + [reason]
    told = [event for event in stage.events if isinstance(event, StoppedEarly)]
    assert told == ([StoppedEarly(rounds, reason)] if reason else [])
    assert load(tmp_path / "out/model.safetensors")["w"].mean() == 0.5 * rounds


REMAINING = """
def flow(control):
    for _ in control.remaining_rounds():
        clients = control.sample()
        model = control.train(control.last_model, clients).aggregate()
        control.publish(model, control.validate(model, clients))
"""


@staged
@pytest.mark.parametrize("workflow", ["fed_avg", "flow.py:flow"])
def test_a_run_that_is_killed_anywhere_ends_in_the_same_round(
    stage: Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workflow: str
) -> None:
    shorten_grace(monkeypatch)
    (tmp_path / "flow.py").write_text(REMAINING)
    out, given = tmp_path / "out", sites(VALUES)
    options: dict[str, Any] = {"rounds": 8, "best": "accuracy:max", "patience": 2, "workflow": workflow}
    with monkeypatch.context() as patch:
        changes = kill_at_each_change(patch, out, tmp_path / "killed")
        expected = without_timing(play(stage, out, given, **options).history)
    ends = [number for number, method in enumerate(changes) if method == "end_round"]
    assert len(ends) == 4
    for number in (*ends, ends[3] - 1, ends[2] + 2):
        copy = tmp_path / "killed" / str(number)
        assert without_timing(play(stage, copy, given, **options).history) == expected
        assert (copy / "model.safetensors").read_bytes() == (out / "model.safetensors").read_bytes()
        assert read_history(copy)[-1].stopped == "accuracy has not improved for 2 rounds; the best is 0.6"


def ended(metric: str, values: list[float | None], **options: Any) -> int:
    """The round in which a run with these values ends early; 0 if it does not."""
    stopping = EarlyStopping(metric, options.get("target"), options.get("patience"))
    for number, value in enumerate(values, start=1):
        stopping.add({} if value is None else {"loss": value})
        if stopping.end_round():
            return number
    return 0


def test_a_smaller_value_is_better_where_the_contract_says_min() -> None:
    assert ended("loss:min", [3.0, 2.0, 1.0, 0.5], target="loss:1") == 3
    assert ended("loss:max", [0.5, 1.0, 2.0], target="loss:1") == 2
    assert ended("loss:min", [3.0, 2.0, 2.0, 1.9, 2.0, 2.0], patience=2) == 6


def test_a_round_without_the_metric_counts_for_nothing() -> None:
    assert ended("loss:min", [1.0, None, None, None, 1.0, None, 1.0], patience=2) == 7


def test_nan_is_never_an_improvement() -> None:
    assert ended("loss:min", [float("nan"), float("nan")], patience=2) == 2
    assert ended("loss:min", [float("nan"), 2.0, float("nan"), 1.0, 0.5], patience=2) == 0
    assert ended("loss:min", [float("nan")] * 3, target="loss:0") == 0


def contract(**server: Any) -> Any:
    return {
        "name": "job",
        "clients": 3,
        "server": {"model": "code.py:model", "rounds": 9} | server,
        "client": {"executor": "code.py"},
        "tasks": {"train": {"returns": "weights"}, "validate": {"returns": "metrics"}},
    }


@pytest.mark.parametrize(
    ("server", "told"),
    [
        ({"target": "accuracy:0.9"}, "target = 'accuracy:0.9' needs `best`"),
        ({"patience": 2}, "patience = 2 needs `best`"),
        ({"best": "loss:min", "target": "accuracy:0.9"}, "is for another metric than best = 'loss:min'"),
        ({"best": "loss:min", "target": "loss:low"}, "server.target"),
        ({"best": "loss:min", "target": "loss:nan"}, "server.target"),
        ({"best": "loss:min", "patience": 0}, "server.patience"),
        ({"workflow": "fed_eval"}, "workflow = 'fed_eval' has one round, got server.rounds = 9: set rounds = 1"),
        ({"workflow": "federated_statistics", "rounds": 1}, "needs tasks.statistics with returns = 'metrics'"),
    ],
)
def test_keys_that_cannot_work_are_refused(server: dict[str, Any], told: str) -> None:
    with pytest.raises(JobError) as refused:
        parse_contract(contract(**server), "here")
    assert told in str(refused.value)


@pytest.mark.parametrize("target", ["loss:0.1", "loss:-1", "loss:1e-3", "loss:.5", "loss:2."])
def test_a_target_is_any_finite_number(target: str) -> None:
    parsed = parse_contract(contract(best="loss:min", target=target), "here")
    assert parsed.server.target == target
