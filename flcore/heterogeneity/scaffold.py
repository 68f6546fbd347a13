"""SCAFFOLD at a client (Karimireddy et al., 2020, arXiv:1910.06378, algorithm 1 with option II).

The server has a control variate c, and client i has its own, c_i. Both estimate gradients: c that of all clients, c_i
that of the client's data. Client i starts at y = x, takes K steps with rate η, and sends both changes:

    y  ← y - η · (g_i(y) - c_i + c)            K times
    c_i⁺ = c_i - c + (x - y) / (K · η)         so c_i⁺ is the client's mean gradient over its steps
    Δy = y - x,    Δc = c_i⁺ - c_i

The server (the workflow `scaffold`) adds the unweighted mean of Δy over the clients S that answered to x, and
|S|/N times that of Δc to c (`control_variates`).
"""

import math
from collections.abc import Mapping
from functools import cached_property
from typing import Any

import numpy as np

from flcore.client.task import Task, Update
from flcore.errors import JobError, SpecError
from flcore.heterogeneity.control_variates import (
    CONTROL_PREFIX,
    COUNTED_ROUNDS,
    control_variates,
    counted_rounds,
    model_tensors,
)
from flcore.heterogeneity.gradients import ArraysLike, Values, delta_of, float_difference, require_names
from flcore.heterogeneity.own_variate import read_variate, write_variate
from flcore.model.arrays import AnyArrays, as_array, flatten, unflatten


class Scaffold:
    """One training task of a SCAFFOLD client. The task returns `delta`; the workflow is `scaffold`.

    The client's own control variate is a file in the site's state directory, written before the update is returned. A
    task that is executed again, after a crash or because its update did not count, starts with the variate that its
    first execution started with.

    Args:
        state: The arrays that the task received (`with_control_variates`).
        task: The task.

    Attributes:
        model: The global model's tensors by name, read-only, without control variates.

    Raises:
        JobError: The site has no state directory, or its files are not those of this run; or the state has no control
            variates for this job's clients.

    Example:
        An executor's function, with `gradients_of` and `data` of your own::

            def train(state, task):
                scaffold = Scaffold(state, task)
                weights = {name: array.copy() for name, array in scaffold.model.items()}
                for batch in data:
                    gradients = scaffold.correct(gradients_of(weights, batch))
                    for name, gradient in gradients.items():
                        weights[name] -= 0.1 * gradient
                return scaffold.update(weights, steps=len(data), learning_rate=0.1)
    """

    def __init__(self, state: Mapping[str, Values], task: Task) -> None:
        site = task.site
        if site.state_directory is None:
            raise JobError(
                "SCAFFOLD keeps this client's control variate in a directory of the site, and the site gives none: "
                "start the client with a state directory (flcore client --state DIR)"
            )
        self.model: dict[str, Values] = model_tensors(state)
        self._directory, self._round = site.state_directory, task.round
        self._counted = int(counted_rounds(state, len(site.clients))[site.index])
        self._rounds_counted, self._control = state[COUNTED_ROUNDS], control_variates(state)
        self._own = read_variate(self._directory, self._counted, self._control)

    @cached_property
    def _corrections(self) -> ArraysLike:
        return ArraysLike({name: np.subtract(self._control[name], own) for name, own in self._own.items()})

    def correct(self, gradients: AnyArrays) -> dict[str, Any]:
        """Return gradients - c_i + c.

        Args:
            gradients: Gradients by name, of any library, nested or flat: of all tensors, or of those that are trained.

        Returns:
            New arrays of the gradients' library, dtype and nesting.

        Raises:
            SpecError: A name or a shape is not that of the global model.
        """
        flat = {
            name: gradient + self._corrections.like(name, gradient) for name, gradient in flatten(gradients).items()
        }
        return unflatten(flat, gradients)

    def update(
        self,
        trained: AnyArrays,
        *,
        steps: int,
        learning_rate: float,
        weight: float = 1.0,
        metrics: Mapping[str, float] | None = None,
    ) -> Update:
        """Store the client's new control variate, and return the update with both changes.

        Args:
            trained: All tensors of the model after the steps.
            steps: The number of steps K, at least 1, of plain SGD.
            learning_rate: The rate η of the steps; their mean rate, if it changed.
            weight: The weight of the metrics. The workflow `scaffold` averages the changes without weights. Default: 1.
            metrics: Metrics by name. Default: none.

        Raises:
            SpecError: The tensors are not those of the model, a value is not finite, or `steps * learning_rate` is not
                finite and > 0.
            OSError: The variate cannot be written.
        """
        span = steps * learning_rate
        if steps < 1 or not (math.isfinite(span) and span > 0):
            raise SpecError(f"expected steps >= 1 and a learning rate > 0, got {steps} and {learning_rate}")
        flat = require_names(trained, self.model)
        after = {name: as_array(flat[name], name) for name in self.model}
        arrays = {name: delta_of(after[name], before, name) for name, before in self.model.items()}
        variate = {name: self._next_variate(name, after[name], span) for name in self._own}
        write_variate(self._directory, self._round, self._counted, variate)
        changes = {CONTROL_PREFIX + name: np.subtract(variate[name], own) for name, own in self._own.items()}
        still = {COUNTED_ROUNDS: np.zeros_like(self._rounds_counted)}
        return Update({**arrays, **changes, **still}, weight=weight, metrics=metrics or {})

    def _next_variate(self, name: str, after: Values, span: float) -> Values:
        """Return c_i - c + (x - y) / (K · η), rounded once."""
        own = self._own[name]
        exact = own - self._control[name].astype(np.float64) - float_difference(after, self.model[name], name) / span
        variate: Values = exact.astype(own.dtype)
        if not np.isfinite(variate).all():
            raise SpecError(f"tensor {name!r}: the control variate is not finite; has the training diverged?")
        return variate
