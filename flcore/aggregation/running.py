"""A running combination, for whoever is handed one update after the other: what the adapters are built on."""

import math
from typing import Any

import numpy as np
import numpy.typing as npt
from flcore_kernels import backend as backend_named

from flcore.aggregation.combination import Combination, Likeness, Read
from flcore.aggregation.gather import Gather
from flcore.aggregation.rules import rule_named
from flcore.errors import QuorumError, SpecError, TensorMismatch
from flcore.model.arrays import AnyArrays
from flcore.model.dtypes import DTYPES
from flcore.model.spec import ModelSpec


class Running:
    """Takes updates as they come: each is looked at, held until `group` are there, folded with them, and let go.

    An update that is refused leaves no trace. They have the tensors of `spec`, or of the first update. Beside the
    updates held, there is a total of the model's size (4, 8 or 16 bytes per parameter). One thread at a time.
    """

    def __init__(
        self,
        *,
        rule: str = "mean",
        accumulate: str = "exact",
        backend: str = "auto",
        group: int = 1,
        max_abs: float = math.inf,
        spec: ModelSpec | None = None,
    ) -> None:
        self._rule, self._accumulate, self._device = rule_named(rule), accumulate, backend_named(backend)
        self._group, self._max_abs = group, max_abs
        self._combination = None if spec is None else self._of(spec)
        self._likeness: Likeness | None = None
        self._held: list[Read] = []
        self.count = 0

    @property
    def spec(self) -> ModelSpec | None:
        """What the model is, once that is known."""
        return None if self._combination is None else self._combination.gather.spec

    def check(self, arrays: AnyArrays, weight: Any, client: str) -> Read:
        """Return an update as it can be added, or raise `UpdateError` and leave everything as it was."""
        combination, read = self._read(arrays, weight, client)
        combination.require_sound(read, self._max_abs)
        return read

    def add(self, arrays: AnyArrays, weight: Any, client: str) -> None:
        """Count an update in, or raise `UpdateError` and leave everything as it was."""
        self._hold(arrays, self.check(arrays, weight, client))
        if len(self._held) >= self._group:
            self._fold()

    def hold(self, arrays: AnyArrays, weight: Any, client: str) -> None:
        """Count an update in that is in memory anyway, and keep it until `finish`.

        Its values are looked at now only if they are bounded. Otherwise `finish` does so as it combines them, names the
        client that it cannot combine, and leaves everything as it was; `drop` takes that client out.
        """
        combination, read = self._read(arrays, weight, client)
        if self._max_abs < math.inf:
            combination.require_sound(read, self._max_abs)
        self._hold(arrays, read)

    def drop(self, client: str) -> None:
        """Take out what is held of a client."""
        kept = [read for read in self._held if read.client != client]
        self.count -= len(self._held) - len(kept)
        self._held = kept

    def finish(self, out: dict[str, npt.NDArray[Any]] | None = None) -> dict[str, Any]:
        """Return the combination of all updates and begin anew, with the same tensors.

        The result is of the first update's kinds, or in the arrays of `out`. Raises `QuorumError` where there is no
        update, what `check` raises for those that were only held, `WeightError` where all weights are zero, and
        `AggregationError` where a dtype cannot hold the result.
        """
        if self._combination is None or self._likeness is None or not self.count:
            raise QuorumError("there is nothing to aggregate: no update was accepted")
        spec, likeness = self._combination.gather.spec, self._likeness
        values = allocated(spec) if out is None else out
        targets = self._combination.gather.targets(values)
        if self.count == len(self._held):
            self._combination.at_once(self._held, targets)
        else:
            self._fold()
            self._combination.finish(targets)
        self.clear()
        return likeness.give(values) if out is None else out

    def clear(self) -> None:
        """Let all updates go; what the model is stays."""
        self._held, self._likeness, self.count = [], None, 0
        if self._combination is not None:
            self._combination = self._of(self._combination.gather.spec)

    def _read(self, arrays: AnyArrays, weight: Any, client: str) -> tuple[Combination, Read]:
        try:
            combination = self._combination or self._of(ModelSpec.of(arrays))
            return combination, combination.read(arrays, weight, client)
        except SpecError as error:
            raise TensorMismatch(str(error), client=client) from None

    def _hold(self, arrays: AnyArrays, read: Read) -> None:
        self._combination = self._combination or self._of(ModelSpec.of(arrays))
        self._likeness = self._likeness or Likeness(self._combination.gather.spec)
        self._likeness.see(arrays, read)
        self._held.append(read)
        self.count += 1

    def _fold(self) -> None:
        if self._combination is not None and self._held:
            self._combination.fold(self._held)
            self._held = []

    def _of(self, spec: ModelSpec) -> Combination:
        return Combination(Gather(spec), self._rule, self._accumulate, self._device)


def allocated(spec: ModelSpec) -> dict[str, npt.NDArray[Any]]:
    """Return new arrays for a model, with anything in them."""
    return {tensor.name: np.empty(tensor.shape, DTYPES[tensor.dtype]) for tensor in spec.tensors}
