"""The kinds of aggregation rules. A rule is a value that declares what it needs.

`Sum` folds one update at a time. `Columns` needs all updates' elements of a range at once, as a median does.
`Geometry` first needs figures of the whole model, such as distances, from which the coefficients of a sum follow.

A *column* is one update's elements of a range, as a flat array. The engine uses the word in this sense too. (In
`update_tables`, columns are those of Arrow tables.)
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Values = npt.NDArray[Any]


@dataclass(frozen=True)
class Sum:
    """A rule that is a weighted mean: Σ cᵢ · updateᵢ / Σ cᵢ, with coefficients cᵢ from the weights.

    Updates are folded one at a time, so memory does not grow with their number.

    Args:
        name: The rule's name, for messages and logs.
        coefficient: Returns the coefficient of an update from its weight.

    Example:
        >>> import math
        >>> Sum("root_mean", math.sqrt).coefficient(100.0)
        10.0
    """

    name: str
    coefficient: Callable[[float], float]


@dataclass(frozen=True)
class Columns:
    """A rule that combines elements across all updates, such as a median.

    Args:
        name: The rule's name, for messages and logs.
        combine: `combine(columns, weights)` gets one array per update, and the weights. The arrays are flat, read-only
            and of the tensor's dtype (quantized ones: float32). They hold the same range of elements of each update. A
            range may begin and end anywhere in a tensor, and span several tensors. `combine` returns an array of the
            same length, which is rounded once to the result's dtype.
        min_updates: The smallest number of updates that it can combine. Default: 1.

    Example:
        >>> median = Columns("median", lambda columns, weights: np.median(np.stack(columns), axis=0))
        >>> median.combine([np.array([1.0]), np.array([5.0]), np.array([2.0])], [1.0, 1.0, 1.0]).tolist()
        [2.0]
    """

    name: str
    combine: Callable[[Sequence[Values], Sequence[float]], Values]
    min_updates: int = 1


@dataclass(frozen=True)
class Geometry:
    """A rule Σ cᵢ · updateᵢ, with coefficients from figures of the whole model, such as norms. Reads updates twice.

    Args:
        name: The rule's name, for messages and logs.
        measure: `measure(columns)` gets the arrays that `Columns.combine` gets, and returns an array of figures (norms,
            scalar products) of one range. The shape is the same for each range. The figures of all ranges are summed.
        coefficients: `coefficients(figures, weights)` returns one number >= 0 per update. The sum is at most 1; a
            smaller sum scales the result down, as clipping does.

    Example:
        >>> equal = Geometry("equal", lambda columns: np.zeros(1), lambda _, weights: [1 / len(weights)] * len(weights))
        >>> list(equal.coefficients(np.zeros(1), [3.0, 1.0]))
        [0.5, 0.5]
    """

    name: str
    measure: Callable[[Sequence[Values]], npt.NDArray[np.float64]]
    coefficients: Callable[[npt.NDArray[np.float64], Sequence[float]], Sequence[float]]


Rule = Sum | Columns | Geometry
