"""The kinds of aggregation rules. A rule is a value that declares what it needs.

`Sum` folds one update at a time. `Columns` needs all updates' elements of a range at once, as a median does. A `Chain`
is stages and then one of these: a stage sees the distances between updates, and makes new points of them, as clipping
and Krum's choice do. `Geometry` is a rule of your own with figures of your own, such as scalar products.

A *column* is one update's elements of a range, as a flat array. The engine uses the word in this sense too. (In
`update_tables`, columns are those of Arrow tables.)
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from flcore_kernels import Optimizer

from flcore.rules.points import Mixture, Points

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


MEAN, UNWEIGHTED_MEAN = Sum("mean", lambda weight: weight), Sum("unweighted_mean", lambda _: 1.0)
"""The two sums of `RULES`, which many chains end with."""


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


@dataclass(frozen=True)
class Stage:
    """A part of a chain: makes M points of the N updates, from their distances.

    Args:
        name: The stage's name with its arguments, for messages and logs.
        mix: Returns what becomes of the points.
        needs: What is measured for it: "distances" of all pairs, "norms" (the distances to the base), or "nothing".
        needs_base: Whether it needs the base. Without one, rows of shares must add up to 1.
        min_updates: The smallest number of points that it can take. Default: 1.
        rows: Returns M for N. Default: N.
    """

    name: str
    mix: Callable[[Points], Mixture]
    needs: Literal["distances", "norms", "nothing"] = "distances"
    needs_base: bool = False
    min_updates: int = 1
    rows: Callable[[int], int] = lambda count: count


@dataclass(frozen=True)
class ServerStep:
    """A server optimizer, which follows a rule (see `server_optimizers`).

    Args:
        name: Its name with its arguments, for messages and logs.
        optimizer: Returns the numbers of step 1, 2, ...
        slots: The arrays of its state: 0, 1 (m) or 2 (m and v).
        start: The first value of v. Default: 0. (m begins with zeros.)
    """

    name: str
    optimizer: Callable[[int], Optimizer]
    slots: int
    start: float = 0.0


@dataclass(frozen=True)
class Chain:
    """Stages, then a rule that combines what they leave, and then a server optimizer.

    Args:
        name: The rule's name, for messages and logs.
        stages: The stages, in order; may be empty.
        rule: A `Sum` or `Columns`.
        step: The optimizer. Default: None, the rule's result is the next model.
    """

    name: str
    stages: tuple[Stage, ...]
    rule: Sum | Columns
    step: ServerStep | None = None

    @property
    def measures(self) -> bool:
        """Whether a stage needs norms or distances, so that all updates are read for them."""
        return any(stage.needs != "nothing" for stage in self.stages)

    @property
    def min_updates(self) -> int:
        """The smallest number of updates with which each stage, and the rule, has as many points as it needs."""
        needed = [*(stage.min_updates for stage in self.stages), min_updates(self.rule)]
        count = 1
        while count <= MAX_NEEDED:
            left, is_enough = count, True
            for stage, least in zip([*self.stages, None], needed, strict=True):
                is_enough &= left >= least
                left = stage.rows(left) if stage and is_enough else left
            if is_enough:
                return count
            count += 1
        return MAX_NEEDED


MAX_NEEDED = 1 << 16
"""The largest number of updates that a chain may need."""

Rule = Sum | Columns | Geometry | Chain


def min_updates(rule: Rule) -> int:
    """Return the smallest number of updates that a rule can combine."""
    return rule.min_updates if isinstance(rule, Columns | Chain) else 1


def streamed_sum(rule: Rule) -> Sum | None:
    """Return the sum that a rule folds one update at a time; None if it needs all updates at once."""
    if isinstance(rule, Chain) and not rule.stages and isinstance(rule.rule, Sum):
        return rule.rule
    return rule if isinstance(rule, Sum) else None


def step_of(rule: Rule) -> ServerStep | None:
    """Return the server optimizer that follows a rule; None if none does."""
    return rule.step if isinstance(rule, Chain) else None


def needs_base(rule: Rule) -> bool:
    """Return whether a rule needs the model that clients began with."""
    return isinstance(rule, Chain) and (rule.step is not None or any(stage.needs_base for stage in rule.stages))
