"""`aggregate`: combines updates into one model, in one call."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain, islice
from typing import Any, TypeVar

from flcore_kernels import Backend, OutOfDeviceMemory, fall_back
from flcore_kernels import backend as backend_named

from flcore.aggregation.admission_limits import AggregationSettings
from flcore.aggregation.array_combiner import ModelTotal, combine_arrays
from flcore.aggregation.combiner import MAX_GROUP, Combiner
from flcore.aggregation.contributions import ArrayContribution, Buffers
from flcore.aggregation.optimizer_state import require_stateless
from flcore.aggregation.output_template import OutputTemplate, allocate_like, require_no_overlap
from flcore.aggregation.reference_model import ReferenceModel, passthrough_reference
from flcore.errors import AggregationError, QuorumError, SpecError, UpdateError
from flcore.model.arrays import AnyArrays, converters_for, flatten
from flcore.model.spec import ModelSpec
from flcore.rules.kinds import Rule, Sum
from flcore.rules.named import resolve_rule

DEFAULT_GROUP = 4
"""How many updates of an iterator are alive at once, if no budget says otherwise."""

Result = TypeVar("Result")


def aggregate(
    updates: Iterable[tuple[AnyArrays, float]],
    *,
    rule: str | Rule = "mean",
    accumulate: str = "exact",
    backend: str = "auto",
    base: AnyArrays | None = None,
    budget_bytes: int | None = None,
    out: Mapping[str, Any] | None = None,
    average_bytes: bool = False,
) -> dict[str, Any]:
    """Combine updates, pairs of named arrays and a weight, into one model.

    Every update has the tensors of the first one: the same names, shapes and dtypes. The result has them too, and has
    the first update's array libraries, devices and nesting. Tensors that share one array in every update share one in
    the result.

    Integers are summed exactly, up to 2^53, and rounded half to even. Booleans count as 0 and 1: the result is true
    where more than half of the weight is true. Some elements have no mean: non-finite values and integers beyond 2^53.
    They pass if all updates in memory agree bit for bit; with `base`, the base's value passes.

    Memory: a sequence is combined at once. An iterator is consumed in groups of 4 updates. With `budget_bytes`, a group
    has as many updates as fit, at least 1 and at most 8. One group and one more update are alive at a time, beside a
    total of the model's size (4, 8 or 16 bytes per parameter). A rule that is not a sum, such as a median, holds all
    updates of an iterator. The environment variable `FLCORE_THREADS` sets the number of threads (default: all cores).

    Args:
        updates: Pairs of a mapping from tensor names to arrays, and a weight. Arrays are NumPy's (bfloat16:
            `ml_dtypes.bfloat16`), PyTorch's, JAX's or CuPy's, or support the buffer protocol, DLPack or
            `__cuda_array_interface__`. They are read in place; only an array that is not contiguous is copied.
            Mappings may be nested: `{"encoder": {"weight": ...}}` has the tensor "encoder.weight". Weights are
            finite, >= 0, and not all zero.
        rule: A key of `RULES` (default: "mean"), with arguments where it has some
            ("trimmed_mean(f=2)"); or a rule: `trimmed_mean(f=2)`, or one of your own (see
            `flcore.rules.kinds`).
        accumulate: The precision of sums of floats.

            - "exact" (default): the result does not depend on the order of the updates, on groups or on threads. Its
              error is at most half a unit in the last place, plus about 2^-48 of the largest magnitude among 64
              neighbours.
            - "float64", "float32": faster; sums in the order given.
        backend: Where to combine.

            - "auto" (default): the device of the first tensor of the first update. Falls back to the CPU with one
              warning if the device cannot be used: CuPy is missing, or memory for the total and result is short.
            - "cpu".
            - "cuda", "cuda:1": this device, or an error. Arrays in host memory are copied to it in pieces.
        base: A model to which the updates are differences. The result is the base plus their combination. Default:
            None, updates are whole models.
        budget_bytes: Bytes of updates to hold at a time, for an iterator. On a device, it bounds the total and the
            pieces. Default: None, groups of 4.
        out: Arrays to write the result into, by name, in host memory or on the device that combines. An array may be
            that of the same tensor in an update; it must not overlap others. Default: None, new arrays.
        average_bytes: Average unsigned bytes. By default, they must be the same in all updates, as they may be packed
            codes.

    Returns:
        The combined model, nested as the first update is, or `out`'s arrays.

    Raises:
        TensorMismatch: An update's tensors differ from the first one's. This error and the next three name the update
            ("update 3") and, where known, the tensor.
        NonFinite: An update has a value that is not finite.
        OutOfBounds: An update has a value that is too large to be combined.
        WeightError: A weight is negative or not finite, or all are zero.
        SpecError: A value is not an array, or has a dtype that models do not support.
        UpdateError: An update is not a pair of a mapping and a weight.
        JobError: The rule or the accumulator is unknown.
        QuorumError: There are no updates.
        AggregationError: A dtype cannot hold the result, or a rule needs more updates.
        flcore_kernels.BackendUnavailable: The named device cannot be used.
        flcore_kernels.OutOfDeviceMemory: The named device has too little free memory.

    Example:
        >>> import numpy as np
        >>> hospital_a = {"layer.weight": np.array([[1.0, 2.0]]), "steps": np.array(10)}
        >>> hospital_b = {"layer.weight": np.array([[5.0, 6.0]]), "steps": np.array(20)}
        >>> model = aggregate([(hospital_a, 100), (hospital_b, 300)])
        >>> model["layer.weight"]
        array([[4., 5.]])
        >>> model["steps"]
        array(18)
    """
    settings = AggregationSettings(resolve_rule(rule), accumulate, backend_named("cpu"), average_bytes)
    require_stateless(settings.rule, "in flcore.aggregate, which has one round")
    stream = iter(updates)
    first = next(stream, None)
    if first is None:
        raise QuorumError("there is nothing to aggregate: no update was given")
    arrays = _unpack(first, "update 0")[0]
    spec = _spec_of(arrays, "update 0") if base is None else _spec_of(base, "base")
    example = dict(flatten(arrays))
    device = backend_named(backend, like=next(iter(example.values()), None), budget_bytes=budget_bytes)
    is_sum = isinstance(settings.rule, Sum)

    def start(device: Backend) -> "_Aggregation":
        # Rules that are not sums are NumPy code or kernels without a CUDA twin, so they stay on the CPU.
        chosen = replace(settings, device=device) if is_sum else settings
        return _Aggregation(spec, chosen, example, base, out)

    if isinstance(updates, Sequence) or not is_sum:
        given = updates if isinstance(updates, Sequence) else [first, *stream]
        return _with_fallback(backend, device, lambda place: start(place).at_once(given))
    aggregation = _with_fallback(backend, device, lambda place: start(place).with_total())
    stream = chain([first], stream)
    del first, arrays  # only the stream references it now, and frees it after use
    example.clear()
    size = DEFAULT_GROUP if budget_bytes is None else max(1, min(MAX_GROUP, budget_bytes // max(1, spec.nbytes)))
    return aggregation.in_groups(stream, size)


def _with_fallback(backend: str, device: Backend, work: Callable[[Backend], Result]) -> Result:
    """Run `work` on a device. Without enough device memory, warn and use the CPU, unless the device was named."""
    try:
        return work(device)
    except OutOfDeviceMemory as error:
        if backend != "auto":
            raise
        fall_back(error)
    return work(backend_named("cpu"))


class _Aggregation:
    """One call of `aggregate` on one device."""

    def __init__(
        self,
        spec: ModelSpec,
        settings: AggregationSettings,
        example: Mapping[str, Any],
        base: AnyArrays | None,
        out: Mapping[str, Any] | None,
    ) -> None:
        self._combiner, self._template, self._out = Combiner(spec, settings), OutputTemplate(spec), out
        buffer_reader, device = self._combiner.buffer_reader, settings.device
        # The base, or nothing: a list, because it is appended to lists of buffers.
        self._bases = [] if base is None else [buffer_reader.buffers(base, "base")]
        self._values = dict(out) if out is not None else allocate_like(spec, example, device)
        self._targets = (
            buffer_reader.output_buffers(out) if out is not None else buffer_reader.buffers(self._values, "")
        )
        if self._bases:
            self._combiner = Combiner(
                spec, settings, ReferenceModel(spec, self._bases[0], device, updates_are_deltas=True)
            )
        self._total: ModelTotal | None = None

    def at_once(self, updates: Sequence[Any]) -> dict[str, Any]:
        """Combine a sequence in one pass."""
        contributions = self._contributions(updates, 0)
        is_in_place = self._is_in_place([contribution.buffers for contribution in contributions])
        combine_arrays(self._combiner, contributions, self._targets, is_in_place=is_in_place, are_named=False)
        return self._result()

    def with_total(self) -> "_Aggregation":
        """Allocate the totals, so that a device without enough memory shows before an iterator is consumed."""
        self._total = ModelTotal(self._combiner)
        return self

    def in_groups(self, stream: Iterator[Any], size: int) -> dict[str, Any]:
        """Combine an iterator, in groups of `size` updates."""
        count = 0
        while group := list(islice(stream, size)):
            contributions = self._contributions(group, count)
            group.clear()  # drop references early, so that memory is freed
            self._fold(contributions, is_first=count == 0)
            count += len(contributions)
            contributions.clear()
        self._is_in_place([])
        if self._total is not None:
            self._total.finish(self._targets)
        return self._result()

    def _is_in_place(self, sources: Sequence[Buffers]) -> bool:
        """Return whether a result overwrites an input. Raises `TensorMismatch` (see `require_no_overlap`)."""
        return self._out is not None and require_no_overlap(
            self._combiner.spec, self._targets, [*sources, *self._bases]
        )

    def _fold(self, contributions: list[ArrayContribution], *, is_first: bool) -> None:
        """Fold a group. If the first one is refused, retry with the first update as the reference model.

        A sequence shows whether all updates have the same passthrough elements; an iterator does not. So later updates
        must have those of the first one. Unsigned bytes are compared from the start: their sum would not fail.
        """
        if is_first and not self._bases and any(segment.dtype == "uint8" for segment in self._combiner.spec.segments):
            self._use_passthrough(contributions[0])
        try:
            if self._combiner.reference_model is not None:
                self._combiner.check_arrays(contributions)
            if self._total is not None:
                self._total.fold(contributions)
        except (UpdateError, AggregationError):
            if (
                not is_first
                or self._combiner.reference_model is not None
                or not self._use_passthrough(contributions[0])
            ):
                raise
            self._fold(contributions, is_first=False)

    def _use_passthrough(self, first: ArrayContribution) -> bool:
        """Restart with an update's passthrough elements and bytes as the reference; return whether it has any."""
        combiner = self._combiner
        reference_model = passthrough_reference(combiner.spec, first.buffers, combiner.device)
        if reference_model is not None:
            self._combiner, self._total = Combiner(combiner.spec, combiner.settings, reference_model), None
            self.with_total()
        return reference_model is not None

    def _result(self) -> dict[str, Any]:
        """Return the result in the updates' libraries and nesting, or the arrays of `out`."""
        if self._out is not None:
            return self._values
        for bases in self._bases:
            self._template.keep_common_ties(bases)
        return self._template.restore(self._values)

    def _contributions(self, updates: Sequence[Any], first: int) -> list[ArrayContribution]:
        combiner, contributions = self._combiner, []
        for number, update in enumerate(updates, first):
            client = f"update {number}"
            arrays, weight = _unpack(update, client)
            weight = combiner.admit_weight(weight, client)
            try:
                buffers = combiner.buffer_reader.buffers(arrays, client)
            except SpecError as error:
                raise SpecError(f"{client}: {error}") from None
            converters = converters_for(arrays) if self._template.is_empty else None
            contributions.append(ArrayContribution(client, weight, combiner.spec, buffers, converters))
            self._template.add_update(contributions[-1])
        return contributions


def _spec_of(arrays: AnyArrays, what: str) -> ModelSpec:
    try:
        return ModelSpec.of(arrays)
    except SpecError as error:
        raise SpecError(f"{what}: {error}") from None


def _unpack(update: Any, client: str) -> tuple[AnyArrays, float]:
    """Return an update's arrays and weight, or raise `UpdateError`."""
    if not (isinstance(update, tuple | list) and len(update) == 2 and isinstance(update[0], Mapping)):
        raise UpdateError("expected a pair of named arrays (a mapping) and a weight", client=client)
    return update[0], update[1]
