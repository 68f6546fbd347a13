"""Early stopping: a run ends at a target metric, or when its metric has not improved for some rounds."""

import math
from collections.abc import Mapping

from flcore.text import counted


class EarlyStopping:
    """Decides after each round whether the run ends. It is told the metrics of published models.

    A round counts if the last model that it published has the metric of `server.best`.

    Args:
        best: The contract's `server.best`, such as "accuracy:max". None: no round ends the run.
        target: The contract's `server.target`, such as "accuracy:0.95". None: no target.
        patience: The contract's `server.patience`. None: the run goes on without an improvement.

    Example:
        >>> stopping = EarlyStopping("loss:min", "loss:0.1", patience=2)
        >>> stopping.add({"loss": 0.3})
        >>> stopping.end_round()
        ''
        >>> stopping.add({"loss": 0.05})
        >>> stopping.end_round()
        'loss 0.05 has reached the target 0.1'
    """

    def __init__(self, best: str | None, target: str | None, patience: int | None) -> None:
        self._metric, _, direction = (best or "").partition(":")
        self._is_max = direction == "max"
        self._target = None if target is None else float(target.rpartition(":")[2])
        self._patience = patience
        self._value: float | None = None
        self._best: float | None = None
        self._rounds_without_improvement = 0

    def add(self, metrics: Mapping[str, float]) -> None:
        """Take the metrics of a model that was published in this round."""
        self._value = metrics.get(self._metric)

    def end_round(self) -> str:
        """End a round. Returns the reason why the run ends with it; empty if the run goes on."""
        value, self._value = self._value, None
        if value is None:
            return ""
        if self._target is not None and self._is_as_good(value, self._target):
            return f"{self._metric} {value:.6g} has reached the target {self._target:g}"
        if not math.isnan(value) and (self._best is None or not self._is_as_good(self._best, value)):
            self._best, self._rounds_without_improvement = value, 0
        else:
            self._rounds_without_improvement += 1
        if self._patience is None or self._rounds_without_improvement < self._patience:
            return ""
        best = "none" if self._best is None else f"{self._best:.6g}"
        rounds = counted(self._rounds_without_improvement, "round")
        return f"{self._metric} has not improved for {rounds}; the best is {best}"

    def _is_as_good(self, value: float, other: float) -> bool:
        return value >= other if self._is_max else value <= other
