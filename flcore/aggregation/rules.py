"""The table of aggregation rules. A rule is a value that declares what it needs.

`Sum` folds one contribution at a time. `Columns` needs all contributions' elements of a range at once, as a
median does.
`Geometry` needs figures of the whole model first, such as distances, from which the coefficients of a sum follow.

A rule of your own is such a value. It can be given itself (`flcore.aggregate(..., rule=median)`), or by a name: in
`RULES`, or in a job and on a command line as `file.py:name`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from flcore.errors import JobError

Values = npt.NDArray[Any]


@dataclass(frozen=True)
class Sum:
    """Σ cᵢ · updateᵢ / Σ cᵢ, where the coefficient cᵢ is a function of the update's weight."""

    name: str
    coefficient: Callable[[float], float]


@dataclass(frozen=True)
class Columns:
    """Combines all updates' elements of a range.

    `combine(columns, weights)` gets one array per update, flat, read-only and of the tensor's dtype (quantized ones as
    float32), and their weights. It returns an array of as many elements, which is rounded to the result's dtype once.
    A range may begin and end anywhere in a tensor, and hold elements of several tensors.
    """

    name: str
    combine: Callable[[Sequence[Values], Sequence[float]], Values]


@dataclass(frozen=True)
class Geometry:
    """Σ cᵢ · updateᵢ, where the coefficients follow from figures of the whole model; it reads all updates twice.

    `measure(columns)` gets what `Columns.combine` gets, and returns an array of figures (norms, scalar products) of one
    range, of the same shape for each range. The figures of all ranges are added up. `coefficients(figures, weights)`
    returns one number >= 0 for each update; they add up to at most 1. What is missing to 1 counts as zeros: a clipped
    mean is shorter than its updates.
    """

    name: str
    measure: Callable[[Sequence[Values]], npt.NDArray[np.float64]]
    coefficients: Callable[[npt.NDArray[np.float64], Sequence[float]], Sequence[float]]


Rule = Sum | Columns | Geometry


def mean() -> Rule:
    """Each update counts by its weight, usually its number of examples (FedAvg; McMahan et al., 2017)."""
    return Sum("mean", lambda weight: weight)


def unweighted_mean() -> Rule:
    """Each update counts the same, whatever its weight."""
    return Sum("unweighted_mean", lambda _: 1.0)


RULES: dict[str, Callable[[], Rule]] = {"mean": mean, "unweighted_mean": unweighted_mean}
"""Every rule, by the name that a job and the command line give it."""


def resolve_rule(rule: str | Rule) -> Rule:
    """Return the rule of a name, or the rule that was given itself; raises `JobError` for an unknown name.

    >>> resolve_rule("mean").name
    'mean'
    """
    if isinstance(rule, Rule):
        return rule
    if not isinstance(rule, str):
        raise JobError(f"rule: expected a name or a rule (flcore.Sum, Columns or Geometry), got {type(rule).__name__}")
    if rule not in RULES:
        raise JobError(f"rule {rule!r} does not exist; expected one of {', '.join(RULES)}, or a rule of your own")
    return RULES[rule]()
