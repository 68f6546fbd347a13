"""FedProx (Li et al., 2020, arXiv:1812.06127): a proximal term that limits how far a client moves."""

import math
from typing import Any

import numpy as np

from flcore.errors import SpecError
from flcore.heterogeneity.gradients import ArraysLike
from flcore.model.arrays import AnyArrays, as_array, flatten, unflatten


class ProximalTerm:
    """The gradient of FedProx's proximal term.

    A client minimises F(w) + mu/2 · ‖w - w_global‖², so each of its gradients has the additional term
    mu · (w - w_global). The server's side of FedProx is FedAvg.

    Args:
        model: The global model that the task received. Only its values are copied, on first use.
        mu: The coefficient, finite and >= 0. With 0, FedProx is FedAvg.

    Raises:
        SpecError: `mu` is negative or not finite.

    Example:
        >>> import numpy as np
        >>> term = ProximalTerm({"w": np.array([1.0])}, mu=0.5)
        >>> term.add_to({"w": np.array([0.0])}, {"w": np.array([3.0])})
        {'w': array([1.])}
    """

    def __init__(self, model: AnyArrays, mu: float) -> None:
        if not (math.isfinite(mu) and mu >= 0):
            raise SpecError(f"mu: expected a finite number >= 0, got {mu}")
        self._mu = mu
        self._model = ArraysLike({name: as_array(array, name) for name, array in flatten(model).items()})

    def add_to(self, gradients: AnyArrays, weights: AnyArrays) -> dict[str, Any]:
        """Return gradients with the gradient of the proximal term added.

        Args:
            gradients: Gradients by name, nested or flat: of all tensors, or of those that are trained.
            weights: The client's present tensors of the same names and library.

        Returns:
            New arrays of the gradients' library and nesting.

        Raises:
            SpecError: A name or a shape is not that of the global model.
        """
        present = flatten(weights)
        flat = {}
        for name, gradient in flatten(gradients).items():
            start = self._model.like(name, gradient)
            if name not in present:
                raise SpecError(f"tensor {name!r}: expected the weights of each gradient's tensor, got none")
            weight = present[name]
            # PyTorch's parameters carry a graph, of which the gradient must not become a part.
            weight = weight.detach() if hasattr(weight, "detach") else weight
            # Of NumPy's dtype: a Python float makes a float32 of bfloat16.
            mu = start.dtype.type(self._mu) if isinstance(start, np.ndarray) else self._mu
            flat[name] = gradient + mu * (weight - start)
        return unflatten(flat, gradients)
