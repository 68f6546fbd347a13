"""FedNova (Wang et al., 2020, arXiv:2007.07481): normalised averaging of clients that take different numbers of steps.

Client i starts at x, takes steps with rate η, and ends at y_i. Its change is y_i - x = -η Σ_k a_ik · g_ik, where a_i
says how its optimizer accumulates gradients: (1, ..., 1) for SGD, whose norm ‖a_i‖₁ is the number of steps. The mean of
the changes counts a client that takes more steps for more than its share p_i of the examples, so FedAvg converges to
the optimum of another objective. FedNova divides each change by its norm first:

    x⁺ = x + τ_eff · Σ_i p_i · (y_i - x) / ‖a_i‖₁        p_i = n_i / Σ_j n_j        τ_eff = Σ_i p_i · ‖a_i‖₁

The paper leaves τ_eff open; with this one, equal norms give FedAvg. In weights: with w_i = n_i / ‖a_i‖₁, flcore's mean
of the changes is D = Σ w_i · (y_i - x) / Σ w_i, and

    x⁺ = x + s · D        s = τ_eff / τ_h        τ_h = Σ_i n_i / Σ_i w_i

The metrics ‖a_i‖₁ and ‖a_i‖₁², which the server averages with the same weights, are τ_h and τ_h · τ_eff.
"""

import math
from collections.abc import Mapping

import numpy as np

from flcore.client.task import Update
from flcore.errors import JobError, SpecError
from flcore.heterogeneity.gradients import Values, delta_of, require_names
from flcore.model.arrays import AnyArrays, as_array, flatten

NORM_METRIC, SQUARE_METRIC = "accumulation_norm", "accumulation_norm_squared"

SAME_NORMS = 1e-12
"""A scale that differs from 1 by less is the rounding error of a mean of equal norms."""

MAX_SCALE = 1e4
"""A larger scale would need norms that differ by more than a factor of 40,000."""


def accumulation_norm(steps: int, *, momentum: float = 0.0, proximal: float = 0.0) -> float:
    """Return ‖a‖₁ of a client's local optimizer: the sum of the coefficients of its gradients.

    Args:
        steps: The number of local steps, at least 1.
        momentum: The coefficient of the optimizer's momentum buffer (PyTorch's `momentum`), 0 <= momentum < 1.
        proximal: With FedProx, the learning rate times mu, 0 <= proximal < 1.

    Raises:
        SpecError: An argument is out of range.

    Example:
        >>> accumulation_norm(10), accumulation_norm(2, momentum=0.5)
        (10.0, 2.5)
    """
    if steps < 1 or not 0 <= momentum < 1 or not 0 <= proximal < 1:
        raise SpecError(
            f"expected steps >= 1, 0 <= momentum < 1 and 0 <= proximal < 1, got {steps}, {momentum} and {proximal}"
        )
    # The change is linear in the gradients, so unit gradients give the sum of their coefficients.
    velocity = moved = 0.0
    for _ in range(steps):
        velocity = momentum * velocity + 1 - proximal * moved
        moved += velocity
    return moved


def nova_update(
    model: AnyArrays, trained: AnyArrays, *, examples: float, norm: float, metrics: Mapping[str, float] | None = None
) -> Update:
    """Return the update of a FedNova client, for a task that returns `delta`.

    With the workflow `fed_nova` the server takes the paper's step. With `fed_avg` it takes the same direction, with
    the harmonic mean τ_h for τ_eff.

    Args:
        model: The global model that the task received.
        trained: The client's tensors after its steps.
        examples: The client's number of examples, > 0.
        norm: ‖a‖₁ (`accumulation_norm`); the number of steps, for SGD without momentum.
        metrics: Metrics by name. The server averages them with the update's weight, examples / norm. Default: none.

    Raises:
        SpecError: `norm` or `examples` is not finite and > 0, or the tensors are not those of the model.

    Example:
        >>> update = nova_update({"w": np.zeros(1)}, {"w": np.ones(1)}, examples=100, norm=20)
        >>> update.weight, update.metrics["accumulation_norm"]
        (5.0, 20.0)
    """
    for name, value in (("examples", examples), ("norm", norm)):
        if not (math.isfinite(value) and value > 0):
            raise SpecError(f"{name}: expected a finite number > 0, got {value}")
    before = {name: as_array(array, name) for name, array in flatten(model).items()}
    after = require_names(trained, before)
    arrays = {name: delta_of(as_array(after[name], name), before[name], name) for name in before}
    norms = {NORM_METRIC: float(norm), SQUARE_METRIC: float(norm) ** 2}
    return Update(arrays, weight=examples / norm, metrics={**(metrics or {}), **norms})


def step_scale(metrics: Mapping[str, float]) -> float:
    """Return s = τ_eff / τ_h from the averaged metrics of a round's updates. 1 if all norms are equal.

    A mean of squares is at least the square of the mean (Jensen's inequality). Metrics that break this, or give a
    larger scale than `MAX_SCALE`, are forged, or one of a pair was dropped: then s is 1, so that one client can neither
    end the job nor make the model infinite.

    Raises:
        JobError: No update was made by `nova_update`.
    """
    if NORM_METRIC not in metrics or SQUARE_METRIC not in metrics:
        raise JobError(
            f"fed_nova: expected updates with the metrics {NORM_METRIC} and {SQUARE_METRIC}, as "
            f"flcore.heterogeneity.nova_update makes them, got {', '.join(metrics) or 'no metrics'}"
        )
    norm, square = metrics[NORM_METRIC], metrics[SQUARE_METRIC]
    scale = square / norm / norm if norm > 0 else 1.0  # the square of a forged norm may be too large for a float
    return scale if 1 + SAME_NORMS < scale <= MAX_SCALE else 1.0


def scale_step(start: Mapping[str, Values], mean: Mapping[str, Values], scale: float) -> dict[str, Values]:
    """Return start + scale · (mean - start), in float64 and rounded once. Integers are those of the mean."""
    return {
        name: (old.astype(np.float64) + scale * np.subtract(mean[name], old, dtype=np.float64)).astype(old.dtype)
        if old.dtype.kind not in "iub"
        else mean[name]
        for name, old in start.items()
    }
