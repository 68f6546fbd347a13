"""FedNova: against an oracle from the paper, and to the right optimum where FedAvg goes to another one."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import flcore
from flcore import JobError, SpecError
from flcore.heterogeneity import accumulation_norm, nova_update
from flcore.heterogeneity.fed_nova import scale_step, step_scale
from tests.flcore.heterogeneity.quadratics import EXAMPLES, NovaClient, job_of, model_of, nova_oracle, optimum


def run(executor: str, tmp_path: Path, rounds: int, rate: float = 0.004, **keys: Any) -> Any:
    hyperparameters = {"learning_rate": rate} | keys.pop("hyperparameters", {})
    job = job_of(executor, tmp_path, rounds=rounds, hyperparameters=hyperparameters, **keys)
    return model_of(flcore.run(job, workers=0))


@pytest.mark.parametrize("optimizer", [{}, {"momentum": 0.6}, {"mu": 2.0}], ids=["sgd", "momentum", "proximal"])
def test_the_workflow_is_the_papers_algorithm(tmp_path: Path, optimizer: dict[str, float]) -> None:
    found = run("NovaClient", tmp_path, 5, 0.02, workflow="fed_nova", hyperparameters=optimizer)
    np.testing.assert_allclose(found, nova_oracle(5, 0.02, **optimizer), rtol=1e-12)


def test_fed_avg_converges_to_the_wrong_point_and_fed_nova_to_the_right_one(tmp_path: Path) -> None:
    """Clients take 2 to 40 steps. FedAvg counts a client by its steps, too."""
    right = optimum(EXAMPLES)
    averaged = run("AveragingClient", tmp_path, 100)
    normalised = run("NovaClient", tmp_path, 100, workflow="fed_nova")
    wrong, near = np.linalg.norm(averaged - right), np.linalg.norm(normalised - right)
    assert wrong > 0.6
    assert near < 0.041
    assert near < wrong / 10


def test_with_fed_avg_the_weights_alone_give_the_right_point(tmp_path: Path) -> None:
    """Its effective number of steps is the harmonic mean, so it needs more rounds."""
    found = run("NovaClient", tmp_path, 200)
    assert np.linalg.norm(found - optimum(EXAMPLES)) < 0.041


def test_with_equal_steps_it_is_fed_avg(tmp_path: Path) -> None:
    steps: dict[str, Any] = {"hyperparameters": {"steps": 7}}
    averaged = run("AveragingClient", tmp_path, 3, **steps)
    np.testing.assert_allclose(run("NovaClient", tmp_path, 3, workflow="fed_nova", **steps), averaged, rtol=1e-13)


def test_a_skipped_round_without_answers_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(self: NovaClient, model: Any, task: flcore.Task) -> flcore.Update:
        if task.round == 2:
            raise RuntimeError("the data is gone")
        return original(self, model, task)

    original = NovaClient.train
    monkeypatch.setattr(NovaClient, "train", failing)
    found = run("NovaClient", tmp_path, 3, 0.02, workflow="fed_nova", on_quorum_failure="skip")
    np.testing.assert_allclose(found, nova_oracle(2, 0.02), rtol=1e-12)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"returns": "weights"}, "needs tasks.train with returns = 'delta', got 'weights'"),
        ({"rule": "unweighted_mean"}, "server.rule = \"mean\", got 'unweighted_mean'"),
    ],
)
def test_a_job_that_cannot_be_fed_nova_is_refused(tmp_path: Path, keys: dict[str, Any], message: str) -> None:
    with pytest.raises(JobError, match=message):
        run("NovaClient", tmp_path, 1, workflow="fed_nova", **keys)


def test_updates_without_norms_are_refused(tmp_path: Path) -> None:
    with pytest.raises(JobError, match=r"accumulation_norm_squared, as flcore.heterogeneity.nova_update makes them"):
        run("AveragingClient", tmp_path, 1, workflow="fed_nova")


def test_the_norm_of_each_optimizer() -> None:
    assert accumulation_norm(7) == 7
    rho, alpha, steps = 0.9, 0.05, 12
    momentum = sum((1 - rho ** (steps - k)) / (1 - rho) for k in range(steps))
    assert accumulation_norm(steps, momentum=rho) == pytest.approx(momentum, rel=1e-12)
    assert accumulation_norm(steps, proximal=alpha) == pytest.approx((1 - (1 - alpha) ** steps) / alpha, rel=1e-12)
    for bad in ({"steps": 0}, {"steps": 2, "momentum": 1.0}, {"steps": 2, "proximal": -0.1}):
        with pytest.raises(SpecError, match="expected steps >= 1"):
            accumulation_norm(**bad)


def test_an_update_has_the_difference_in_the_models_dtypes() -> None:
    model = {"a": {"w": np.array([1.0, 2.0], np.float32)}, "count": np.array(5, np.int64), "mask": np.array([True])}
    trained = {"a": {"w": np.array([3.0, 1.0], np.float32)}, "count": np.array(9, np.int64), "mask": np.array([True])}
    update = nova_update(model, trained, examples=30, norm=10, metrics={"loss": 0.5})
    assert {name: array.tolist() for name, array in update.arrays.items()} == {
        "a.w": [2.0, -1.0],
        "count": 4,
        "mask": [False],
    }
    assert update.arrays["a.w"].dtype == np.float32 and update.weight == 3
    assert update.metrics == {"loss": 0.5, "accumulation_norm": 10, "accumulation_norm_squared": 100}


@pytest.mark.parametrize(
    ("trained", "message"),
    [
        ({}, "'w': the trained model lacks it"),
        ({"w": np.zeros(2, np.float32), "v": np.zeros(1)}, "'v': the global model has no tensor of this name"),
        ({"w": np.zeros(3, np.float32)}, r"'w': expected float32 of shape \(2,\), got float32 of shape \(3,\)"),
        ({"w": np.zeros(2)}, "'w': expected float32"),
    ],
)
def test_tensors_that_are_not_the_models_are_refused(trained: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        nova_update({"w": np.zeros(2, np.float32)}, trained, examples=1, norm=1)


@pytest.mark.parametrize(("examples", "norm"), [(0, 1), (1, 0), (math.nan, 1), (1, math.inf)])
def test_numbers_that_are_no_weight_are_refused(examples: float, norm: float) -> None:
    with pytest.raises(SpecError, match="expected a finite number > 0"):
        nova_update({"w": np.zeros(1)}, {"w": np.zeros(1)}, examples=examples, norm=norm)


def test_the_scale_is_at_least_one_whatever_the_metrics_are() -> None:
    assert step_scale({"accumulation_norm": 4.0, "accumulation_norm_squared": 20.0}) == 1.25
    forged = [
        (0.0, 1.0),
        (-1.0, 2.0),
        (4.0, 1.0),
        (4.0, math.inf),
        (math.nan, 1.0),
        (1e-200, 1.0),
        (1e200, 1.0),
        (1.0, 2e4),
    ]
    for norm, square in [(3.0, 9.000000000000002), *forged]:
        assert step_scale({"accumulation_norm": norm, "accumulation_norm_squared": square}) == 1.0


def test_integers_are_those_of_the_mean() -> None:
    start = {"w": np.array([1.0], np.float16), "count": np.array([3])}
    mean = {"w": np.array([2.0], np.float16), "count": np.array([4])}
    stepped = scale_step(start, mean, 2.5)
    assert stepped["w"].tolist() == [3.5] and stepped["w"].dtype == np.float16 and stepped["count"].tolist() == [4]
