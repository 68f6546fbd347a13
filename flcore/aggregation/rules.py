"""The table of aggregation rules. A rule is a value that declares what it needs.

`Sum` folds one update at a time. `Columns` needs all updates' elements of a range at once, as a median does.
`Geometry` first needs figures of the whole model, such as distances, from which the coefficients of a sum follow.

A *column* is one update's elements of a range, as a flat array. The engine uses the word in this sense too. (In
`update_tables`, columns are those of Arrow tables.)

A rule of your own is such a value. Pass it directly (`flcore.aggregate(..., rule=median)`), or by a name: in `RULES`,
or in a job and on a command line as `file.py:name`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from flcore.errors import JobError
from flcore.text import did_you_mean

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

    Example:
        >>> median = Columns("median", lambda columns, weights: np.median(np.stack(columns), axis=0))
        >>> median.combine([np.array([1.0]), np.array([5.0]), np.array([2.0])], [1.0, 1.0, 1.0]).tolist()
        [2.0]
    """

    name: str
    combine: Callable[[Sequence[Values], Sequence[float]], Values]


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


def mean() -> Rule:
    """Each update counts by its weight, usually its number of examples (FedAvg; McMahan et al., 2017)."""
    return Sum("mean", lambda weight: weight)


def unweighted_mean() -> Rule:
    """All updates have the same weight."""
    return Sum("unweighted_mean", lambda _: 1.0)


RULES: dict[str, Callable[[], Rule]] = {"mean": mean, "unweighted_mean": unweighted_mean}
"""A function without arguments for every rule, by the name that jobs and the command line use."""


def resolve_rule(rule: str | Rule) -> Rule:
    """Return the rule of a name, or a given rule itself. Raises `JobError` for an unknown name.

    >>> resolve_rule("mean").name
    'mean'
    """
    if isinstance(rule, Rule):
        return rule
    if not isinstance(rule, str):
        raise JobError(f"rule: expected a name or a rule (flcore.Sum, Columns or Geometry), got {type(rule).__name__}")
    if error := explain_unknown_rule(rule, "a rule of your own"):
        raise JobError(error)
    return RULES[rule]()


def explain_unknown_rule(name: str, alternative: str) -> str:
    """Return the error for a name that is no key of `RULES`; "" if it is one.

    A job, a command line and a call raise it in their own ways. `alternative` says how they name a rule of your own.
    """
    if name in RULES:
        return ""
    return (
        f"rule {name!r} does not exist; expected one of {', '.join(RULES)}, or {alternative}{did_you_mean(name, RULES)}"
    )
