"""Jobs whose rule has a server optimizer: what they compute, and servers that go on with its state."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flcore import JobError, StepOverflow, Update, load
from flcore.aggregation.optimizer_state import OptimizerStep
from flcore.server.events import RoundSkipped
from flcore.server.history_table import read_history
from tests.flcore.conftest import Function, Stage, adding
from tests.flcore.server.test_continuation import kill, play, same

in_process = pytest.mark.parametrize("stage", ["in-process"], indirect=True)


def run(stage: Stage, rule: str, rounds: int, train: Function, out: Path | None = None, **options: Any) -> set[float]:
    """Run a job with two clients that do the same; return the values of the last model, which begins with zeros."""
    given: dict[str, Any] = {"wait_for": 2, "quorum": 2, "clients": 2, "rounds": rounds, "rule": rule}
    stage.open(**(given | options), out=out)
    for name in ("client-1", "client-2"):
        stage.client(name, train)
    arrays = stage.result().model.arrays()
    stage.close()
    return {float(value) for array in arrays.values() for value in array.reshape(-1)}


def constant(value: float) -> Function:
    return lambda model, _: Update({name: np.full_like(array, value) for name, array in model.items()}, weight=1.0)


def adam(rounds: int, moved: float, lr: float) -> float:
    model, m, v = 0.0, 0.0, 1e-6
    for _ in range(rounds):
        m, v = 0.9 * m + 0.1 * moved, 0.99 * v + 0.01 * moved**2
        model += lr * m / (v**0.5 + 1e-3)
    return model


@pytest.mark.parametrize("plan", ["batch", "streaming"])
@pytest.mark.parametrize("returns", ["weights", "delta"])
def test_the_model_is_what_the_optimizer_makes_of_the_mean(stage: Stage, plan: str, returns: str) -> None:
    train = constant(0.5) if returns == "delta" else adding(0.5, weight=1.0)
    found = run(stage, "mean + fed_adam(lr=0.1)", 3, train, plan=plan, tasks={"train": returns})
    assert len(found) == 1 and found.pop() == pytest.approx(adam(3, 0.5, 0.1), rel=1e-6)


@in_process
@pytest.mark.parametrize(
    ("durability", "method", "hit"),
    [
        ("disk", "add_answer", 5),
        *((durability, "end_call", hit) for durability in ("disk", "memory") for hit in (3, 4)),
        *((durability, "end_round", hit) for durability in ("disk", "memory") for hit in (1, 2)),
    ],
)
def test_a_server_that_is_killed_goes_on_with_the_state(
    stage: Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, durability: str, method: str, hit: int
) -> None:
    out, copy, rule = tmp_path / "out", tmp_path / "copy", "mean + fed_adam(lr=0.1)"
    kill(monkeypatch, method, hit, out, copy)
    expected = play(stage, out, rule=rule, durability=durability)
    assert not (out / ".optimizer").exists(), "the run is over"
    assert same(play(stage, copy, rule=rule, durability=durability), expected)


@in_process
def test_one_state_is_kept_beside_the_one_that_is_made(
    stage: Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, copy = tmp_path / "out", tmp_path / "copy"
    kill(monkeypatch, "end_round", 3, out, copy)
    play(stage, out, rule="mean + fed_avg_m")
    states = sorted((copy / ".optimizer").iterdir())
    assert len(states) == 2, "that of round 2, and that of round 3, which is not over"
    assert [int(load(state)["steps"]) for state in sorted(states, key=lambda path: int(path.name))] == [2, 3]


@in_process
def test_a_step_that_overflows_leaves_the_model_as_it_was_and_the_round_says_so(
    stage: Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, calls = OptimizerStep.write, list[int]()

    def write(self: OptimizerStep, *arguments: Any) -> None:
        calls.append(1)
        if len(calls) == 1:
            raise StepOverflow("fed_avg_m in step 1: tensor 'w': element 0 does not fit")
        original(self, *arguments)

    monkeypatch.setattr(OptimizerStep, "write", write)
    out = tmp_path / "out"
    found = run(stage, "mean + fed_avg_m", 2, adding(1.0, weight=1.0), out)
    assert found == {1.0}, "the second round is the first step"
    first, second = read_history(out)
    assert first.skipped == "fed_avg_m in step 1: tensor 'w': element 0 does not fit; the model stays as it was"
    assert not second.skipped
    assert sum(isinstance(event, RoundSkipped) for event in stage.events) == 1


@in_process
def test_a_damaged_state_is_an_error_that_names_the_file(
    stage: Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, copy = tmp_path / "out", tmp_path / "copy"
    kill(monkeypatch, "end_round", 2, out, copy)
    play(stage, out, rule="mean + fed_avg_m")
    for state in (copy / ".optimizer").iterdir():
        (state / "model.safetensors").write_bytes(b"not a model")
    with pytest.raises(JobError, match=r"\.optimizer/\d+, the state of the server's optimizer, is damaged"):
        play(stage, copy, rule="mean + fed_avg_m")
