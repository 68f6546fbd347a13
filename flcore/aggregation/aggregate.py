"""`aggregate`: updates in, one model out, in a call."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain, islice
from typing import Any

import numpy as np
import numpy.typing as npt
from flcore_kernels import Backend, Total
from flcore_kernels import backend as backend_named

from flcore.aggregation.gather import Buffers, Gather, blamed, spec_of
from flcore.aggregation.rules import Rule, rule_named
from flcore.aggregation.weights import accumulator_of, require_accumulator, require_sum, require_weight
from flcore.errors import QuorumError, SpecError, UpdateError
from flcore.model.dtypes import DTYPES
from flcore.model.spec import ModelSpec

GROUP, LARGEST_GROUP = 4, 8

NamedArrays = Mapping[str, Any]


def aggregate(
    updates: Iterable[tuple[NamedArrays, float]],
    *,
    rule: str = "mean",
    accumulate: str = "exact",
    backend: str = "auto",
    base: NamedArrays | None = None,
    budget_bytes: int | None = None,
    out: Mapping[str, npt.NDArray[Any]] | None = None,
) -> dict[str, npt.NDArray[Any]]:
    """Return the combination of `updates`, pairs of named arrays and a weight.

    >>> import numpy as np
    >>> hospital_a = {"layer.weight": np.array([[1.0, 2.0]]), "steps": np.array(10)}
    >>> hospital_b = {"layer.weight": np.array([[5.0, 6.0]]), "steps": np.array(20)}
    >>> model = aggregate([(hospital_a, 100), (hospital_b, 300)])
    >>> model["layer.weight"]
    array([[4., 5.]])
    >>> model["steps"]
    array(18)

    The arrays are NumPy's (bfloat16: `ml_dtypes.bfloat16`) or anything with the buffer protocol, read where they are;
    only one that is not contiguous is copied. All updates have the tensors of the first, by name, shape and dtype, and
    the result has them too. Weights are finite and >= 0, and not all zero.

    `accumulate`: "exact" (the result does not depend on the order of the updates, on groups or on threads; its error is
    half a unit of the last place and about 2^-48 of the largest magnitude among 64 neighbours), "float64" or "float32"
    (faster, in the order given). Integers are always summed exactly, up to 2^53, and round half to even. With `base`,
    updates are differences, and the result is the base plus their combination. `out` holds arrays to write the result
    into. `rule` is a key of `RULES`; the number of threads is `FLCORE_THREADS`, or that of the cores.

    A sequence is combined at once. An iterator is consumed in groups of 4 updates, of up to 8 where `budget_bytes`
    holds them, of 1 where it holds no more; then at most a group and one more update are alive, beside a total of the
    model's size (4, 8 or 16 bytes per parameter).

    Raises `TensorMismatch`, `NonFinite`, `OutOfBounds` and `WeightError`, which name the update ("update 3") and the
    tensor; `SpecError` for what is no array or of a dtype that models do not have; `UpdateError` for what is no pair;
    `JobError` for an unknown rule or accumulator; `QuorumError` for no updates at all; `AggregationError` where a dtype
    cannot hold the result.
    """
    chosen, device = rule_named(rule), backend_named(backend)
    require_accumulator(accumulate)
    stream = iter(updates)
    first = next(stream, None)
    if first is None:
        raise QuorumError("there is nothing to aggregate: no update was given")
    try:
        spec = spec_of(_pair(first, "update 0")[0] if base is None else base)
    except SpecError as error:
        raise SpecError(f"{'update 0' if base is None else 'base'}: {error}") from None
    stream = chain([first], stream)
    del first  # the stream alone holds it now, and lets it go
    work = _Work(Gather(spec), chosen, accumulate, device)
    bases = None if base is None else work.gather.buffers(base, "base")
    result, targets = (dict(out), work.gather.targets(out)) if out is not None else allocate(spec)
    if isinstance(updates, Sequence):
        work.at_once(updates, targets, bases)
    else:
        size = GROUP if budget_bytes is None else max(1, min(LARGEST_GROUP, budget_bytes // max(1, spec.nbytes)))
        work.in_groups(_groups(stream, size), targets, bases)
    return result


def allocate(spec: ModelSpec) -> tuple[dict[str, npt.NDArray[Any]], Buffers]:
    """Return new arrays for a model, and the same as buffers."""
    arrays = {tensor.name: np.empty(tensor.shape, DTYPES[tensor.dtype]) for tensor in spec.tensors}
    return arrays, Gather(spec).buffers(arrays, client="")


def _pair(update: Any, client: str) -> tuple[NamedArrays, float]:
    """Return an update's two halves, or raise `UpdateError`."""
    if not (isinstance(update, tuple | list) and len(update) == 2 and isinstance(update[0], Mapping)):
        raise UpdateError("expected a pair of named arrays (a mapping) and a weight", client=client)
    return update[0], update[1]


def _groups(stream: Iterator[Any], size: int) -> Iterator[list[Any]]:
    """Yield lists of up to `size`; whoever gets one empties it, so that nothing is alive longer than need be."""
    while group := list(islice(stream, size)):
        yield group


class _Work:
    """What one call needs from its beginning to its end."""

    def __init__(self, gather: Gather, rule: Rule, accumulate: str, device: Backend) -> None:
        self.gather = gather
        self._rule, self._accumulate, self._device = rule, accumulate, device
        self._segments = [(seg, accumulator_of(seg.dtype, accumulate)) for seg in gather.spec.segments]
        self._strictest = "exact" if any(each == "exact" for _, each in self._segments) else accumulate

    def at_once(self, updates: Sequence[Any], targets: Buffers, bases: Buffers | None) -> None:
        """Fold and finish all updates in one pass per dtype."""
        parts, coefficients, clients = self._read(updates, 0)
        require_sum(coefficients)
        for index, (segment, accumulate) in enumerate(self._segments):
            with blamed(segment, clients):
                self._device.mean(
                    [part[index] for part in parts],
                    coefficients,
                    targets[index],
                    segment.dtype,
                    accumulate,
                    base=None if bases is None else bases[index],
                )

    def in_groups(self, groups: Iterator[list[Any]], targets: Buffers, bases: Buffers | None) -> None:
        """Fold group after group into totals of the model's size, and finish them."""
        totals = [self._device.total(segment.elements, accumulate) for segment, accumulate in self._segments]
        everything: list[float] = []
        for group in groups:
            everything += self._fold(totals, group, len(everything))
            group.clear()
        require_sum(everything)
        for index, (segment, _) in enumerate(self._segments):
            with blamed(segment, []):
                base = None if bases is None else bases[index]
                self._device.finish(totals[index], targets[index], segment.dtype, base=base)

    def _fold(self, totals: list[Total], group: list[Any], first: int) -> list[float]:
        parts, coefficients, clients = self._read(group, first)
        for index, (segment, _) in enumerate(self._segments):
            with blamed(segment, clients):
                self._device.fold(totals[index], [part[index] for part in parts], coefficients, segment.dtype)
        return coefficients

    def _read(self, updates: Sequence[Any], first: int) -> tuple[list[Buffers], list[float], list[str]]:
        parts, coefficients, clients = [], [], []
        for number, update in enumerate(updates, first):
            client = f"update {number}"
            arrays, weight = _pair(update, client)
            coefficients.append(self._rule.coefficient(require_weight(weight, self._strictest, client)))
            try:
                parts.append(self.gather.buffers(arrays, client))
            except SpecError as error:
                raise SpecError(f"{client}: {error}") from None
            clients.append(client)
        return parts, coefficients, clients
