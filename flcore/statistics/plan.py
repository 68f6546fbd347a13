"""What is computed, and what is suppressed: the hyperparameters of a task of statistics."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from flcore.errors import JobError

MAX_ERROR = 0.5


@dataclass(frozen=True)
class StatisticsPlan:
    """The hyperparameters of a task of statistics, checked.

    Attributes:
        min_count: A group of fewer values does not leave its site.
        relative_error: The relative error of quantiles.
        bins: The edges of a column's histogram, ascending, by column. A column without has no histogram.
        quantiles: The quantiles that are computed, from 0 to 1.

    Example:
        >>> StatisticsPlan.of({"min_count": 20, "bins": {"age": [40, 60]}}).bins
        {'age': (40.0, 60.0)}
    """

    min_count: int = 10
    relative_error: float = 0.01
    bins: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    quantiles: tuple[float, ...] = (0.25, 0.5, 0.75)

    @classmethod
    def of(cls, hyperparameters: Mapping[str, Any]) -> "StatisticsPlan":
        """Return the plan of a task's hyperparameters. Raises `JobError`, which names the wrong one."""
        error = hyperparameters.get("relative_error", 0.01)
        if not _is_number(error) or not 0 < error <= MAX_ERROR:
            raise JobError(f"relative_error: expected a number > 0 and at most {MAX_ERROR}, got {error!r}")
        bins = hyperparameters.get("bins", {})
        if not isinstance(bins, Mapping):
            raise JobError(f"bins: expected a table of edges by column, got {bins!r}")
        quantiles = _numbers("quantiles", hyperparameters.get("quantiles", (0.25, 0.5, 0.75)))
        if not all(0 <= quantile <= 1 for quantile in quantiles):
            raise JobError(f"quantiles: expected numbers from 0 to 1, got {list(quantiles)}")
        edges = {column: _numbers(f"bins.{column}", values) for column, values in bins.items()}
        for column, values in edges.items():
            if not values or not all(first < second for first, second in pairwise(values)):
                raise JobError(f"bins.{column}: expected edges in ascending order, each once, got {list(values)}")
        return cls(require_count(hyperparameters.get("min_count", 10)), float(error), edges, quantiles)


def require_count(min_count: object) -> int:
    """Return a smallest count, or raise `JobError` unless it is a whole number from 1 on."""
    if isinstance(min_count, bool) or not isinstance(min_count, int) or min_count < 1:
        raise JobError(f"min_count: expected a whole number from 1 on, got {min_count!r}")
    return min_count


def _numbers(name: str, values: object) -> tuple[float, ...]:
    if not isinstance(values, Sequence) or not all(_is_number(value) for value in values):
        raise JobError(f"{name}: expected a list of numbers, got {values!r}")
    return tuple(float(value) for value in values)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < float("inf")
