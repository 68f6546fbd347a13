"""Combines checkpoints into one, range by range, from files into files, in memory that a budget bounds."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import reduce
from typing import Any

import numpy as np
import numpy.typing as npt
from flcore_kernels import backend as backend_named
from flcore_kernels import storage_dtype

from flcore.aggregation.admission_limits import AggregationSettings
from flcore.aggregation.budget import DEFAULT_BUDGET, Budget
from flcore.aggregation.combiner import Combiner
from flcore.aggregation.contributions import (
    RANGE_ELEMENTS,
    ConvertedContribution,
    StoredContribution,
    model_ranges,
)
from flcore.aggregation.optimizer_state import require_stateless
from flcore.errors import BudgetError, QuorumError, UpdateError, WeightError
from flcore.model.atomic_replace import AtomicReplace
from flcore.model.checkpoint import open_model
from flcore.model.chunks import DtypeConversion, plan_dtype_conversion
from flcore.model.dtypes import DTYPES, INTEGERS
from flcore.model.model_paths import PathLike, split_model_path
from flcore.model.model_writer import ShardWriter
from flcore.model.open_file import require_files_fit
from flcore.model.shard_layout import plan_like
from flcore.model.spec import ModelSpec
from flcore.model.stored_model import StoredModel, count_files
from flcore.rules.kinds import Chain, Columns, Rule, Sum
from flcore.rules.named import resolve_rule

MIN_RANGE_ELEMENTS = 1 << 12
"""The smallest range: reading shorter ones takes longer in calls to the system than in copies."""

COPIES = 2
"""How often an element of a checkpoint is in memory, for a sum: in the range that is combined, and in the next one.

Other rules take twice as many: columns in the tensors' dtype, and copies without gaps or passthrough elements. Chains
take three times as many: also the points that their stages make."""

WORK_BYTES_PER_ELEMENT = 5 * 8
"""The largest number of bytes that an element of the result takes beside the checkpoints: total, result and buffers."""


@contextmanager
def _checkpoint_errors() -> Iterator[None]:
    """Have errors of updates say "checkpoint" for "client": the checks are those of updates."""
    try:
        yield
    except UpdateError as error:
        error.sender = "checkpoint"
        raise


@_checkpoint_errors()
def aggregate_checkpoints(
    paths: Sequence[PathLike],
    out: PathLike,
    *,
    weights: Sequence[float] | None = None,
    rule: str | Rule = "mean",
    accumulate: str = "exact",
    dtype: str | None = None,
    base: PathLike | None = None,
    scale: float = 1.0,
    budget: Budget = DEFAULT_BUDGET,
    average_bytes: bool = False,
    on_progress: Callable[[int, int], None] = lambda *_: None,
) -> StoredModel:
    """Combine checkpoints into a new one. It appears when it is complete.

    All checkpoints have the tensors of the first one, in any order. The result has its metadata and is split into files
    as the first one is.

    Args:
        paths: The checkpoints: a safetensors file, an index of several, or a directory with either (see `open_model`).
        out: The result: `NAME.safetensors` or a directory (see `save`).
        weights: One weight per path. Default: None, all 1.
        rule: As in `aggregate`. Ignored with `base`.
        accumulate: As in `aggregate`.
        dtype: The dtype of the result's floats. A tensor's floats may then be of several dtypes, and are combined in
            the smallest one that holds all of them. Default: None, their own dtypes, which must be equal.
        base: A checkpoint for task arithmetic (Ilharco et al., 2023, arXiv:2212.04089): the result is
            base + scale · Σ weightᵢ · (checkpointᵢ - base), in float64 and rounded once. Weights are any finite
            numbers, and nothing is divided. Default: None.
        scale: The factor of the differences from `base`. Default: 1.
        budget: The memory beside Python and its libraries. Default: 1 GiB.
        average_bytes: As in `aggregate`.
        on_progress: Called after each range with the bytes of the result that are done, and all of its bytes.

    Returns:
        The result, opened.

    Raises:
        QuorumError: There are no checkpoints.
        SpecError: A file is not a model.
        TensorMismatch: A checkpoint's tensors differ from the first one's. This error and the next two name the file.
        NonFinite: A checkpoint has a value that is not finite, and others have not.
        WeightError: A weight is outside its range, or all are zero.
        BudgetError: There are more checkpoints than the budget or the limit of open files allows.
        AggregationError: The dtype cannot hold the result.
    """
    if not paths:
        raise QuorumError("there is nothing to aggregate: no checkpoint was given")
    names = [str(path) for path in paths]
    factors = [1.0] * len(paths) if weights is None else list(weights)
    if len(factors) != len(paths):
        raise WeightError(f"expected one weight for each of {len(paths)} checkpoints, got {len(factors)}")
    chosen = resolve_rule(rule) if base is None else _task_arithmetic(names, factors, scale)
    require_stateless(chosen, "for checkpoints, which have one round")
    require_files_fit(*count_files(paths, base))
    if base is not None:
        paths, names, factors = [*paths, base], [*names, str(base)], [*factors, 1.0]
    models = [open_model(path) for path in paths]
    spec = models[0].spec if dtype is None else _widest_spec([model.spec for model in models])
    conversion = plan_dtype_conversion(spec, dtype)
    settings = AggregationSettings(chosen, accumulate, backend_named(), average_bytes or base is not None)
    combiner = Combiner(spec, settings, dtypes=conversion.dtypes)
    if base is None:
        factors = [combiner.admit_weight(weight, name) for name, weight in zip(names, factors, strict=True)]
    elements = range_elements(budget, spec, chosen, len(models))
    contributions = [
        _contribution(name, weight, model, spec, elements, may_widen=dtype is not None)
        for name, weight, model in zip(names, factors, models, strict=True)
    ]
    with ShardWriter(plan_like(conversion.target, models[0].shards), AtomicReplace(*split_model_path(out))) as writer:
        sink = _ConvertingSink(conversion, writer, elements)
        ranges = model_ranges(spec, elements)
        for _ in combiner.run(combiner.plan(contributions, ranges), ranges, sink):
            on_progress(sink.done_bytes, conversion.nbytes)
        return writer.commit()


class _ConvertingSink:
    """A `ChunkSink` over the result's files, in the result's dtypes."""

    def __init__(self, conversion: DtypeConversion, writer: ShardWriter, elements: int) -> None:
        self.spec, self._conversion, self._writer = conversion.source, conversion, writer
        self._values = np.empty(elements, np.uint64)
        self.done_bytes = 0

    def chunk(self, segment: int, first: int, stop: int) -> npt.NDArray[Any]:
        """Return an array to fill with elements `first` to `stop` of a segment."""
        return self._values.view(storage_dtype(self._conversion.dtypes[segment]))[: stop - first]

    def put(self, segment: int, first: int, values: npt.NDArray[Any]) -> None:
        """Write elements of a segment, from `first` on, to the files."""
        self._conversion.put(self._writer, segment, first, values)
        self.done_bytes += values.nbytes


def _contribution(
    name: str, weight: float, model: StoredModel, spec: ModelSpec, elements: int, *, may_widen: bool
) -> StoredContribution | ConvertedContribution:
    """Return the contribution of a checkpoint, or raise `TensorMismatch` unless it has the tensors of `spec`."""
    dtypes = {tensor.name: tensor.dtype for tensor in spec.tensors}
    wide = [
        replace(tensor, dtype=_common_dtype(tensor.dtype, dtypes.get(tensor.name, ""))) for tensor in model.spec.tensors
    ]
    if not may_widen or wide == list(model.spec.tensors):
        return StoredContribution(name, weight, model.reordered(spec, name), elements)
    spec.require_match(ModelSpec(tuple(wide)), client=name)
    return ConvertedContribution(name, weight, model, spec)


def _widest_spec(specs: Sequence[ModelSpec]) -> ModelSpec:
    """Return the first spec, with floats of the smallest dtypes that hold those of all specs."""
    dtypes: dict[str, list[str]] = {}
    for spec in specs:
        for tensor in spec.tensors:
            dtypes.setdefault(tensor.name, []).append(tensor.dtype)
    return ModelSpec(
        tuple(replace(tensor, dtype=reduce(_common_dtype, dtypes[tensor.name])) for tensor in specs[0].tensors)
    )


def _common_dtype(dtype: str, other: str) -> str:
    """Return the smallest dtype that holds the values of two floats; the first one if they are not floats.

    >>> _common_dtype("float16", "bfloat16"), _common_dtype("bfloat16", "bfloat16"), _common_dtype("int8", "float32")
    ('float32', 'bfloat16', 'int8')
    """
    if dtype == other or not {dtype, other} <= DTYPES.keys() - INTEGERS:
        return dtype
    return "float64" if "float64" in (dtype, other) else "float32"


def _task_arithmetic(names: Sequence[str], weights: Sequence[float], scale: float) -> Columns:
    """Return the rule base + scale · Σ weightᵢ · (checkpointᵢ - base). The last contribution is the base."""
    for name, weight in zip(names, weights, strict=True):
        if not math.isfinite(weight):
            raise WeightError(f"expected a finite weight, got {weight!r}", client=name)
    if not math.isfinite(scale):
        raise WeightError(f"expected a finite scale, got {scale!r}")

    def combine(columns: Sequence[npt.NDArray[Any]], weights: Sequence[float]) -> npt.NDArray[np.float64]:
        base = columns[-1].astype(np.float64)
        total, difference = np.zeros_like(base), np.empty_like(base)  # reused: fresh pages cost more than the sums
        with np.errstate(over="ignore", invalid="ignore"):
            for weight, column in zip(weights[:-1], columns[:-1], strict=True):
                np.subtract(column, base, out=difference, dtype=np.float64)
                difference *= weight
                total += difference
            total *= scale
            total += base
        return total

    return Columns("task arithmetic", combine)


def range_elements(budget: Budget, spec: ModelSpec, rule: Rule, models: int, kind: str = "checkpoints") -> int:
    """Return how many elements of each model are read at once, or raise `BudgetError` if they are too few."""
    copies = COPIES * (1 if isinstance(rule, Sum) else 3 if isinstance(rule, Chain) else 2)
    element_bytes = (
        copies * models * max(DTYPES[segment.dtype].itemsize for segment in spec.segments) + WORK_BYTES_PER_ELEMENT
    )
    elements = min(RANGE_ELEMENTS, budget.nbytes // element_bytes // MIN_RANGE_ELEMENTS * MIN_RANGE_ELEMENTS)
    if not elements:
        raise BudgetError(
            f"{models} {kind} at once take {element_bytes * MIN_RANGE_ELEMENTS >> 20}MiB or more, "
            f"and the budget is {budget.nbytes >> 20}MiB"
        )
    return elements
