"""The aggregator: stages updates, commits each whole or not at all, and folds them into the next model.

All updates are folded when `finish` is called, in the order of their clients' names, chunk by chunk: all K updates of a
chunk in one pass over memory, with a total that never leaves the cache, straight into the result. So the result does
not depend on the order in which the updates came in, whatever they are summed in.
"""

import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy.typing as npt
from flcore_kernels import backend as backend_named
from flcore_transport import piece_elements

from flcore.aggregation.gather import blamed
from flcore.aggregation.rules import rule_named
from flcore.aggregation.staging import StagedUpdate
from flcore.aggregation.weights import accumulator_of, require_accumulator, require_sum, require_weight
from flcore.errors import QuorumError, UpdateError
from flcore.model.model import Model
from flcore.model.spec import ModelSpec


class Aggregator:
    """Combines updates of one model.

    `rule` is a name of `flcore.RULES`; `accumulate` is "exact", "float64" or "float32" (see `flcore.aggregate`). With
    `base`, updates are differences, and the result is the base plus their combination. `max_abs` bounds the magnitude
    of every element. Methods may be called from any thread.

    >>> import numpy as np
    >>> spec = ModelSpec.of({"w": np.zeros(2, np.float32)})
    >>> aggregator = Aggregator(spec)
    >>> for client, weight, value in [("a", 1, [0.0, 4.0]), ("b", 3, [4.0, 0.0])]:
    ...     with aggregator.update(client=client, weight=weight) as update:
    ...         update.write("w", np.array(value, np.float32))
    >>> aggregator.finish().arrays()["w"].tolist()
    [3.0, 1.0]
    """

    def __init__(
        self,
        spec: ModelSpec,
        *,
        rule: str = "mean",
        accumulate: str = "exact",
        base: Model | None = None,
        backend: str = "auto",
        max_abs: float = math.inf,
    ) -> None:
        self._spec, self._base, self._max_abs = spec, base, max_abs
        self._rule, self._accumulate = rule_named(rule), require_accumulator(accumulate)
        used = {accumulator_of(segment.dtype, accumulate) for segment in spec.segments}
        self._strictest = "exact" if "exact" in used else accumulate
        self._backend = backend_named(backend)
        self._lock = threading.Lock()
        self._committed: dict[str, StagedUpdate] = {}

    @contextmanager
    def update(self, *, client: str, weight: float) -> Iterator[StagedUpdate]:
        """Stage an update; it is committed when the block ends well, and leaves no trace otherwise.

        `weight` is finite and >= 0 (`WeightError`); a client has one update (`UpdateError`); an update that is not
        whole at the end of the block raises `TensorMismatch`.
        """
        staged = self.stage(client, weight)
        yield staged
        self.commit(staged)

    def stage(self, client: str, weight: float) -> StagedUpdate:
        """Return a new staged update, which counts only if it is committed."""
        accepted = require_weight(weight, self._strictest, client)
        return StagedUpdate(self._spec, self._backend, client, accepted, self._max_abs)

    def commit(self, staged: StagedUpdate) -> None:
        """Make a staged update count, if it is whole and its client's first."""
        staged.require_whole()
        with self._lock:
            if staged.client in self._committed:
                raise UpdateError("it has an update in this aggregation already", client=staged.client)
            self._committed[staged.client] = staged

    def finish(self) -> Model:
        """Fold all committed updates and return the result; the updates are let go.

        Raises `QuorumError` where there is no update, `WeightError` where all weights are zero, and `AggregationError`
        where the result does not fit the tensor's dtype.
        """
        with self._lock:
            updates = [self._committed[client] for client in sorted(self._committed)]
            self._committed = {}
        if not updates:
            raise QuorumError("there is nothing to aggregate: no update was committed")
        coefficients = [self._rule.coefficient(update.weight) for update in updates]
        require_sum(coefficients)
        result = Model(self._spec)
        for index, segment in enumerate(self._spec.segments):
            size = piece_elements(segment.dtype)
            for chunk in range(-(-segment.elements // size)):
                parts = [update.take_chunk(index, chunk) for update in updates]
                self._combine(result, index, chunk * size, parts, coefficients, [each.client for each in updates])
        return result

    def _combine(
        self,
        result: Model,
        index: int,
        first: int,
        parts: list[npt.NDArray[Any]],
        coefficients: list[float],
        clients: list[str],
    ) -> None:
        segment = self._spec.segments[index]
        stop = first + parts[0].size
        base = None if self._base is None else self._base.segments[index][first:stop]
        out = result.segments[index][first:stop]
        with blamed(segment, clients, first):
            self._backend.mean(
                parts, coefficients, out, segment.dtype, accumulator_of(segment.dtype, self._accumulate), base=base
            )
