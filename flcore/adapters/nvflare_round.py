"""The results of one NVFLARE round that count: their common kind, and the weighted means of their metrics."""

import math
import numbers
from collections.abc import Mapping
from typing import Any, NamedTuple

from nvflare.app_common.abstract.fl_model import FLModel, ParamsType

from flcore.aggregation.admission_limits import require_positive_weight
from flcore.errors import UpdateError

MAX_MAGNITUDE = 1e300
"""The bound of steps and metrics. A weighted mean of metrics below it is finite."""


class _Result(NamedTuple):
    client: str
    kind: ParamsType | None
    is_on_disk: bool
    metrics: Mapping[str, Any]
    weight: float


class RoundResults:
    """The state of a round beside its tensors. The first result that counts decides the kind of all.

    Attributes:
        refusals: The errors of refused results, in the order of arrival.
    """

    def __init__(self) -> None:
        self.refusals: list[str] = []
        self._results: list[_Result] = []

    @property
    def has_results(self) -> bool:
        """Whether a result counts."""
        return bool(self._results)

    @property
    def kind(self) -> ParamsType | None:
        """The kind of the results: full weights or differences. None without results."""
        return self._results[0].kind if self._results else None

    @property
    def is_on_disk(self) -> bool:
        """Whether the results are references to tensors on disk."""
        return bool(self._results) and self._results[0].is_on_disk

    def require_same_kind(self, model: FLModel, is_on_disk: bool, client: str) -> None:
        """Raise an error unless a result is of the round's kind.

        Args:
            model: The result.
            is_on_disk: Whether its tensors are references to tensors on disk.
            client: The client's name, for errors.

        Raises:
            UpdateError: The result has differences and the round full weights, or tensors on disk and the round tensors
                in memory; or the other way round.
        """
        if self._results and model.params_type != self.kind:
            raise UpdateError(f"its parameters are {model.params_type}, others' {self.kind}", client=client)
        if self._results and is_on_disk != self.is_on_disk:
            here, there = ("on disk", "in memory") if is_on_disk else ("in memory", "on disk")
            raise UpdateError(f"its tensors are {here}, others' {there}", client=client)

    def count(self, model: FLModel, is_on_disk: bool, weight: float, client: str) -> None:
        """Record a result that counts."""
        metrics = model.metrics if isinstance(model.metrics, Mapping) else {}
        self._results.append(_Result(client, model.params_type, is_on_disk, metrics, float(weight)))

    def discount(self, client: str) -> None:
        """Remove the last result of a client, whose values were found invalid after it was recorded."""
        for index in reversed(range(len(self._results))):
            if self._results[index].client == client:
                del self._results[index]
                return

    def metrics(self) -> dict[str, float] | None:
        """Return the weighted mean of each metric that is a finite number in all results; None if there is none.

        Raises:
            WeightError: All weights are zero. A rule may ignore weights; these means do not.
        """
        require_positive_weight([result.weight for result in self._results])
        total = math.fsum(result.weight for result in self._results)
        means = {
            name: math.fsum(float(result.metrics[name]) * (result.weight / total) for result in self._results)
            for name in (self._results[0].metrics if self._results else ())
            if all(is_number(result.metrics.get(name)) for result in self._results)
        }
        return means or None


def is_number(value: Any) -> bool:
    """Whether a value is a real number of a magnitude below `MAX_MAGNITUDE`. NaN is not."""
    is_real = isinstance(value, numbers.Real)
    return is_real and bool(abs(value) < MAX_MAGNITUDE)
