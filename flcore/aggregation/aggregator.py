"""The aggregator: stages updates, commits each whole or not at all, and folds them into the next model.

All updates are folded when `finish` is called, in the order of their clients' names, chunk by chunk: all K
updates of a chunk in one pass over memory, into a total of one chunk in float64, which is divided and rounded straight
into the result. So the result does not depend on the order in which the updates came in.
"""

import math
import numbers
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
from flcore_kernels import backend as backend_named
from flcore_transport import piece_elements

from flcore.aggregation.rules import rule_named
from flcore.aggregation.staging import StagedUpdate
from flcore.errors import AggregationError, QuorumError, UpdateError, WeightError
from flcore.model.model import Arrays, Model
from flcore.model.spec import ModelSpec

MAX_WEIGHT = 1e300


class Aggregator:
    """Combines updates of one model.

    `rule` is a name of `flcore.RULES`. With `base`, updates are differences, and the result is the base plus their
    combination. `max_abs` bounds the magnitude of every element. Methods may be called from any thread.

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
        base: Model | None = None,
        backend: str = "auto",
        max_abs: float = math.inf,
    ) -> None:
        self._spec, self._base, self._max_abs = spec, base, max_abs
        self._rule = rule_named(rule)
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
        given: Any = weight
        if isinstance(given, bool) or not isinstance(given, numbers.Real) or not 0 <= weight < MAX_WEIGHT:
            raise WeightError(f"a weight is a finite number >= 0, not {weight!r}", client=client)
        return StagedUpdate(self._spec, self._backend, client, float(weight), self._max_abs)

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
        weights = [self._rule.coefficient(update.weight) for update in updates]
        if not (weight_sum := math.fsum(weights)) > 0:
            raise WeightError(f"the weights of all {len(updates)} updates are zero")
        result = Model(self._spec)
        for index, segment in enumerate(self._spec.segments):
            size = piece_elements(segment.dtype)
            total = np.empty(min(size, segment.elements), np.float64)
            for chunk in range(-(-segment.elements // size)):
                parts = [update.take_chunk(index, chunk) for update in updates]
                self._combine(result, index, chunk * size, total[: parts[0].size], parts, weights, weight_sum)
        return result

    def _combine(
        self,
        result: Model,
        index: int,
        first: int,
        total: npt.NDArray[np.float64],
        parts: list[npt.NDArray[Any]],
        weights: list[float],
        weight_sum: float,
    ) -> None:
        segment = self._spec.segments[index]
        total.fill(0.0)
        self._backend.fold(total, parts, weights, segment.dtype)
        stop = first + total.size
        base = None if self._base is None else self._base.segments[index][first:stop]
        out = result.segments[index][first:stop]
        bad = self._backend.finish(total, weight_sum, out, segment.dtype, base)
        if bad >= 0:
            tensor, element = segment.at(first + bad)
            raise AggregationError(
                f"tensor {tensor.name!r}: element {element} of the result does not fit into {segment.dtype}"
            )


def aggregate(
    updates: Iterable[tuple[Arrays, float]], *, rule: str = "mean", base: Arrays | None = None, backend: str = "auto"
) -> dict[str, npt.NDArray[Any]]:
    """Return the combination of `updates`, pairs of named arrays and a weight, in their order.

    All updates have the tensors of the first (`TensorMismatch`). With `base`, they are differences from it.

    >>> updates = [({"w": np.array([1.0, 2.0])}, 1), ({"w": np.array([5.0, 6.0])}, 3)]
    >>> aggregate(updates)["w"].tolist()
    [4.0, 5.0]
    """
    start = None if base is None else Model.of(base)
    aggregator: Aggregator | None = None
    spec: ModelSpec | None = None
    for index, (arrays, weight) in enumerate(updates):
        spec = spec or (ModelSpec.of(arrays) if start is None else start.spec)
        aggregator = aggregator or Aggregator(spec, rule=rule, base=start, backend=backend)
        client = f"update {index:09d}"
        spec.require(ModelSpec.of(arrays), client=client)
        with aggregator.update(client=client, weight=weight) as update:
            for name, array in arrays.items():
                update.write(name, array)
    if aggregator is None:
        raise QuorumError("there is nothing to aggregate: no update was given")
    return aggregator.finish().arrays()
