"""`aggregate`: updates in, one model out, in a call."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import chain, islice
from typing import Any, NamedTuple, TypeVar

from flcore_kernels import Backend, OutOfDeviceMemory, fall_back
from flcore_kernels import backend as backend_named

from flcore.aggregation.combination import Combination, Likeness, Read
from flcore.aggregation.gather import Buffers, Gather, allocated_alike
from flcore.aggregation.rules import Rule, rule_named
from flcore.aggregation.weights import require_accumulator
from flcore.errors import QuorumError, SpecError, UpdateError
from flcore.model.arrays import AnyArrays, flattened, kinds_of
from flcore.model.spec import ModelSpec

GROUP, LARGEST_GROUP = 4, 8

Outcome = TypeVar("Outcome")


def aggregate(
    updates: Iterable[tuple[AnyArrays, float]],
    *,
    rule: str = "mean",
    accumulate: str = "exact",
    backend: str = "auto",
    base: AnyArrays | None = None,
    budget_bytes: int | None = None,
    out: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Return the combination of `updates`, pairs of named arrays and a weight.

    >>> import numpy as np
    >>> hospital_a = {"layer.weight": np.array([[1.0, 2.0]]), "steps": np.array(10)}
    >>> hospital_b = {"layer.weight": np.array([[5.0, 6.0]]), "steps": np.array(20)}
    >>> model = aggregate([(hospital_a, 100), (hospital_b, 300)])
    >>> model["layer.weight"]
    array([[4., 5.]])
    >>> model["steps"]
    array(18)

    The arrays are those of NumPy (bfloat16: `ml_dtypes.bfloat16`), PyTorch, JAX or CuPy, or anything with the buffer
    protocol, DLPack or `__cuda_array_interface__`, read where they are; only one that is not contiguous is copied. They
    may be nested: {"encoder": {"weight": ...}} has the tensor "encoder.weight". All updates have the tensors of the
    first, by name, shape and dtype. The result has them too, as the first update does: of the same libraries, on the
    same devices, nested alike; tensors that are one array in every update are one in the result. Weights are finite and
    >= 0, and not all zero.

    `backend`: "cpu", "cuda", "cuda:1", or "auto" for where the first tensor of the first update is. What is on a device
    that cannot be used (no CuPy, no room for the total and the result) is copied to the CPU, after one warning; where
    the device was named, that is an error instead. With "cuda", arrays in memory go to the device in pieces.

    `accumulate`: "exact" (the result does not depend on the order of the updates, on groups or on threads; its error is
    half a unit of the last place and about 2^-48 of the largest magnitude among 64 neighbours), "float64" or "float32"
    (faster, in the order given). Integers are always summed exactly, up to 2^53, and round half to even; booleans are 0
    and 1, so that the result is true where more than half of the weight says so. With `base`, updates are differences,
    and the result is the base plus their combination. `out` holds arrays to write the result into, in memory, or on the
    device that combines. `rule` is a key of `RULES`; the number of threads is `FLCORE_THREADS`, or that of the cores.

    A sequence is combined at once. An iterator is consumed in groups of 4 updates, of up to 8 where `budget_bytes`
    holds them, of 1 where it holds no more; then at most a group and one more update are alive, beside a total of the
    model's size (4, 8 or 16 bytes per parameter). On a device, the budget bounds that total and the pieces.

    Raises `TensorMismatch`, `NonFinite`, `OutOfBounds` and `WeightError`, which name the update ("update 3") and the
    tensor; `SpecError` for what is no array or of a dtype that models do not have; `UpdateError` for what is no pair;
    `JobError` for an unknown rule or accumulator; `QuorumError` for no updates at all; `AggregationError` where a dtype
    cannot hold the result; `flcore_kernels.BackendUnavailable` and `OutOfDeviceMemory` for a device that was named.
    """
    chosen = rule_named(rule)
    require_accumulator(accumulate)
    stream = iter(updates)
    first = next(stream, None)
    if first is None:
        raise QuorumError("there is nothing to aggregate: no update was given")
    arrays = _pair(first, "update 0")[0]
    spec = _spec_of(arrays, "update 0") if base is None else _spec_of(base, "base")
    example = dict(flattened(arrays))
    device = backend_named(backend, near=next(iter(example.values()), None), budget_bytes=budget_bytes)
    begin = partial(_begin, spec, chosen, accumulate, example, base, out)
    if isinstance(updates, Sequence):
        return _somewhere(backend, device, lambda each: _at_once(begin(each), updates))
    begun = _somewhere(backend, device, lambda each: _reserved(begin(each)))
    stream = chain([first], stream)
    del first, arrays  # the stream alone holds it now, and lets it go
    example.clear()
    size = GROUP if budget_bytes is None else max(1, min(LARGEST_GROUP, budget_bytes // max(1, spec.nbytes)))
    return _in_groups(begun, stream, size)


class _Begun(NamedTuple):
    """A combination, and what its result goes into."""

    combination: Combination
    likeness: Likeness
    values: dict[str, Any]
    targets: Buffers
    bases: Buffers | None
    is_given: bool

    def result(self) -> dict[str, Any]:
        """Return the values as the updates' arrays are; those that were given as they are."""
        if self.is_given:
            return self.values
        if self.bases is not None:
            self.likeness.untie(self.bases)
        return self.likeness.give(self.values)


def _begin(
    spec: ModelSpec,
    rule: Rule,
    accumulate: str,
    example: Mapping[str, Any],
    base: AnyArrays | None,
    out: Mapping[str, Any] | None,
    device: Backend,
) -> _Begun:
    gather = Gather(spec, device)
    combination = Combination(gather, rule, accumulate, device)
    values = dict(out) if out is not None else allocated_alike(spec, example, device)
    bases = None if base is None else gather.buffers(base, "base")
    targets = gather.targets(values) if out is not None else gather.buffers(values, "")
    return _Begun(combination, Likeness(spec), values, targets, bases, out is not None)


def _somewhere(backend: str, device: Backend, work: Callable[[Backend], Outcome]) -> Outcome:
    """Work on a device; on the CPU, after a warning, if there is no room and the device was not named."""
    try:
        return work(device)
    except OutOfDeviceMemory as error:
        if backend != "auto":
            raise
        fall_back(error)
    return work(backend_named("cpu"))


def _at_once(begun: _Begun, updates: Sequence[Any]) -> dict[str, Any]:
    reads = _read(updates, 0, begun.combination, begun.likeness)
    begun.combination.at_once(reads, begun.targets, begun.bases)
    return begun.result()


def _reserved(begun: _Begun) -> _Begun:
    begun.combination.reserve()
    return begun


def _in_groups(begun: _Begun, stream: Iterator[Any], size: int) -> dict[str, Any]:
    count = 0
    for group in _groups(stream, size):
        begun.combination.fold(_read(group, count, begun.combination, begun.likeness))
        count += len(group)
        group.clear()
    begun.combination.finish(begun.targets, begun.bases)
    return begun.result()


def _spec_of(arrays: AnyArrays, what: str) -> ModelSpec:
    try:
        return ModelSpec.of(arrays)
    except SpecError as error:
        raise SpecError(f"{what}: {error}") from None


def _pair(update: Any, client: str) -> tuple[AnyArrays, float]:
    """Return an update's two halves, or raise `UpdateError`."""
    if not (isinstance(update, tuple | list) and len(update) == 2 and isinstance(update[0], Mapping)):
        raise UpdateError("expected a pair of named arrays (a mapping) and a weight", client=client)
    return update[0], update[1]


def _groups(stream: Iterator[Any], size: int) -> Iterator[list[Any]]:
    """Yield lists of up to `size`; whoever gets one empties it, so that nothing is alive longer than need be."""
    while group := list(islice(stream, size)):
        yield group


def _read(updates: Sequence[Any], first: int, combination: Combination, likeness: Likeness) -> list[Read]:
    reads = []
    for number, update in enumerate(updates, first):
        client = f"update {number}"
        arrays, weight = _pair(update, client)
        try:
            reads.append(combination.read(arrays, weight, client))
        except SpecError as error:
            raise SpecError(f"{client}: {error}") from None
        likeness.see(reads[-1], kinds_of(arrays) if likeness.is_new else {})
    return reads
