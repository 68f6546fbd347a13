"""FedProx: its gradient, and that it limits drift."""

import math
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest

import flcore
from flcore import SpecError
from flcore.heterogeneity import ProximalTerm
from tests.flcore.heterogeneity.quadratics import EXAMPLES, job_of, model_of, optimum


def test_the_gradient_is_that_of_the_proximal_term() -> None:
    """Compared with the derivative of F(w) + mu/2 ‖w - w_global‖² by central differences."""
    rng = np.random.default_rng(1)
    start, w, mu, step = rng.normal(size=5), rng.normal(size=5), 0.7, 1e-6

    def loss(at: npt.NDArray[np.float64]) -> float:
        return float(np.sin(at).sum() + mu / 2 * ((at - start) ** 2).sum())

    expected = [(loss(w + step * unit) - loss(w - step * unit)) / (2 * step) for unit in np.eye(5)]
    found = ProximalTerm({"w": start}, mu).add_to({"w": np.cos(w)}, {"w": w})
    np.testing.assert_allclose(found["w"], expected, atol=1e-8)


def test_gradients_keep_their_nesting_and_dtype_and_may_be_a_part() -> None:
    model = {"a": {"w": np.ones(2, np.float32), "b": np.ones(1)}, "c": np.ones(3, ml_dtypes.bfloat16)}
    weights = {"a": {"w": np.full(2, 3, np.float32)}, "c": np.full(3, 2, ml_dtypes.bfloat16)}
    gradients: dict[str, Any] = {"a": {"w": np.zeros(2, np.float32)}, "c": np.zeros(3, ml_dtypes.bfloat16)}
    found = ProximalTerm(model, 0.5).add_to(gradients, weights)
    assert found["a"]["w"].tolist() == [1.0, 1.0] and found["a"]["w"].dtype == np.float32
    assert found["c"].astype(float).tolist() == [0.5] * 3 and found["c"].dtype == ml_dtypes.bfloat16
    assert gradients["a"]["w"].tolist() == [0, 0], "the gradients are not changed"


def test_what_does_not_fit_is_refused() -> None:
    term = ProximalTerm({"w": np.zeros(2)}, 1.0)
    with pytest.raises(SpecError, match="'v': the global model has no tensor of this name; it has w"):
        term.add_to({"v": np.zeros(2)}, {"v": np.zeros(2)})
    for _ in range(2):  # also once the model's tensor is converted
        with pytest.raises(SpecError, match=r"'w': expected a gradient of shape \(2,\), got \(1,\)"):
            term.add_to({"w": np.zeros(1)}, {"w": np.zeros(1)})
        term.add_to({"w": np.zeros(2)}, {"w": np.zeros(2)})
    with pytest.raises(SpecError, match="expected the weights of each gradient's tensor"):
        term.add_to({"w": np.zeros(2)}, {})
    with pytest.raises(SpecError, match="'w': expected an array"):
        ProximalTerm({"w": np.zeros(2)}, 1.0).add_to({"w": None}, {"w": np.zeros(2)})
    for mu in (-1.0, math.nan, math.inf):
        with pytest.raises(SpecError, match="mu: expected a finite number >= 0"):
            ProximalTerm({"w": np.zeros(2)}, mu)


def test_it_limits_how_far_clients_drift_and_what_that_costs(tmp_path: Path) -> None:
    """40 local steps bring each client near its own optimum; FedAvg stops far from the common one."""

    def run(mu: float) -> tuple[float, float]:
        settings = {"learning_rate": 0.05, "steps": 40, "mu": mu}
        outcome = flcore.run(job_of("AveragingClient", tmp_path, rounds=60, hyperparameters=settings), workers=0)
        return outcome.history[-1].train["drift"], float(np.linalg.norm(model_of(outcome) - optimum(EXAMPLES)))

    runs = [run(mu) for mu in (0.0, 1.0, 10.0)]
    drifts, distances = zip(*runs, strict=True)
    np.testing.assert_allclose(drifts, [2.31, 1.48, 0.35], atol=0.01)
    np.testing.assert_allclose(distances, [0.44, 0.27, 0.04], atol=0.01)
