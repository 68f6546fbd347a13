"""Checkpoints in, one checkpoint out: chunk by chunk, from files and into files, in memory that a budget sets.

Every chunk of all checkpoints is read into buffers that are used again and again, the next one while the present one is
combined, and written where it belongs. How chunks are combined is a function of its own (`Combine`).
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
from flcore_kernels import STORAGE, storage_dtype
from flcore_kernels import backend as backend_named

from flcore.aggregation.ahead import ahead
from flcore.aggregation.budget import DEFAULT_BUDGET, Budget
from flcore.aggregation.checks import check_values
from flcore.aggregation.gather import blamed
from flcore.aggregation.rules import rule_named
from flcore.aggregation.weights import accumulator_of, require_accumulator, require_sum, require_weight
from flcore.errors import AggregationError, BudgetError, QuorumError, UpdateError, WeightError
from flcore.model.beside import Beside
from flcore.model.checkpoint import open_model
from flcore.model.descriptors import require_files_fit
from flcore.model.dtypes import DTYPES, INTEGERS
from flcore.model.names import PathLike, place_of
from flcore.model.recast import Recast, recast
from flcore.model.shards import plan_alike
from flcore.model.spec import SegmentSpec
from flcore.model.stored import StoredModel
from flcore.model.writer import ShardWriter

MOST_ELEMENTS, LEAST_ELEMENTS = 1 << 19, 1 << 12
"""Of a chunk: more do not make it faster, and fewer are mostly calls to the system."""

WORK_BYTES = 5 * 8
"""What combining and writing an element takes beside the chunks that are read, at most."""

Values = npt.NDArray[Any]

Combine = Callable[[SegmentSpec, int, Sequence[Values], Values, str], None]
"""Combines all checkpoints' elements of a segment, from one on, into an array of a dtype."""


@contextmanager
def _of_checkpoints() -> Iterator[None]:
    """Have the errors of updates, which the checks here share, call their senders checkpoints."""
    try:
        yield
    except UpdateError as error:
        error.sender = "checkpoint"
        raise


@_of_checkpoints()
def aggregate_checkpoints(
    paths: Sequence[PathLike],
    out: PathLike,
    *,
    weights: Sequence[float] | None = None,
    rule: str = "mean",
    accumulate: str = "exact",
    dtype: str | None = None,
    base: PathLike | None = None,
    scale: float = 1.0,
    budget: Budget = DEFAULT_BUDGET,
    observe: Callable[[int, int], None] = lambda *_: None,
) -> StoredModel:
    """Combine checkpoints into a new one, `out`, and return it.

    A path is a safetensors file, an index of several, or a directory with either (see `open_model`); `out` is
    `NAME.safetensors` or a directory (see `save`). All checkpoints have the tensors of the first, in any order; the
    result is spread over files as the first is, with its metadata. It appears when it is whole.

    `weights` has one for each path (all 1 by default), `rule` and `accumulate` are those of `aggregate`. `dtype` is
    what floats of the result have instead of their own. With `base`, the result is base + scale · Σ weightᵢ ·
    (checkpointᵢ - base), in float64 and rounded once: task arithmetic (Ilharco et al., 2023, arXiv:2212.04089), where
    weights and scale are any finite numbers and nothing is divided. `observe` is told how many of how many bytes of the
    result are done. At most `budget` is in memory beside Python and its libraries.

    Raises `SpecError` for files that are no model, `TensorMismatch`, `NonFinite` and `WeightError`, which name the
    file, `BudgetError` for more checkpoints than the budget or the process's limit of open files has room for, and
    `AggregationError` where the dtype cannot hold the result.
    """
    if not paths:
        raise QuorumError("there is nothing to aggregate: no checkpoint was given")
    names = [str(path) for path in paths]
    given = [1.0] * len(paths) if weights is None else list(weights)
    if len(given) != len(paths):
        raise WeightError(f"expected one weight for each of {len(paths)} checkpoints, got {len(given)}")
    if base is None:
        combine = _averaging(names, given, rule, accumulate)
    else:
        combine = _adding_differences(names, given, str(base), scale)
    require_files_fit(paths, base)
    first = open_model(paths[0])
    others = [
        open_model(path).laid_out(first.spec, str(path)) for path in (*paths[1:], *([] if base is None else [base]))
    ]
    return _combined([first, *others], combine, recast(first.spec, dtype), Beside(*place_of(out)), budget, observe)


def _combined(
    models: Sequence[StoredModel],
    combine: Combine,
    into: Recast,
    place: Beside,
    budget: Budget,
    observe: Callable[[int, int], None],
) -> StoredModel:
    spec, elements = into.source, _chunk_elements(budget, len(models))
    steps = [
        (segment, begin, min(begin + elements, each.elements))
        for segment, each in enumerate(spec.segments)
        for begin in range(0, each.elements, elements)
    ]
    buffers = [[np.empty(elements, np.uint64) for _ in models] for _ in range(2)]

    def read(number: int) -> list[Values]:
        """Read a step's chunks, in turn into one half of the buffers and into the other."""
        segment, begin, stop = steps[number]
        kind = storage_dtype(spec.segments[segment].dtype)
        chunks = [buffer.view(kind)[: stop - begin] for buffer in buffers[number % 2]]
        for model, chunk in zip(models, chunks, strict=True):
            model.fill(segment, begin, chunk)
        return chunks

    result, done = np.empty(elements, np.uint64), 0
    with ShardWriter(plan_alike(into.target, models[0].shards), place) as writer:
        for number, chunks in ahead(read, range(len(steps))):
            segment, begin, stop = steps[number]
            named = into.dtypes[segment]
            values = result.view(storage_dtype(named))[: stop - begin]
            combine(spec.segments[segment], begin, chunks, values, named)
            into.put(writer, segment, begin, values)
            done += values.nbytes
            observe(done, into.nbytes)
        return writer.commit()


def _averaging(names: Sequence[str], weights: Sequence[float], rule: str, accumulate: str) -> Combine:
    """Return the combination by a rule."""
    chosen, device = rule_named(rule), backend_named()
    require_accumulator(accumulate)
    coefficients = [
        chosen.coefficient(require_weight(weight, accumulate, name))
        for name, weight in zip(names, weights, strict=True)
    ]
    require_sum(coefficients)

    def combine(segment: SegmentSpec, first: int, chunks: Sequence[Values], out: Values, dtype: str) -> None:
        with blamed(segment, list(names), first):
            accumulator = accumulator_of(segment.dtype, accumulate)
            device.mean(list(chunks), coefficients, out, segment.dtype, accumulator, result=dtype)

    return combine


def _adding_differences(names: Sequence[str], weights: Sequence[float], base_name: str, scale: float) -> Combine:
    """Return the sum of differences from the last model, which is the base, added to it."""
    for name, weight in zip(names, weights, strict=True):
        if not math.isfinite(weight):
            raise WeightError(f"expected a finite weight, got {weight!r}", client=name)
    if not math.isfinite(scale):
        raise WeightError(f"expected a finite scale, got {scale!r}")
    device = backend_named()

    def combine(segment: SegmentSpec, first: int, chunks: Sequence[Values], out: Values, dtype: str) -> None:
        for name, chunk in zip((*names, base_name), chunks, strict=True):
            check_values(device, segment, segment.dtype, first, chunk, max_abs=math.inf, client=name)
        own = DTYPES[segment.dtype]
        base = chunks[-1].view(own).astype(np.float64)
        total = np.zeros_like(base)
        with np.errstate(over="ignore", invalid="ignore"):
            for weight, chunk in zip(weights, chunks[:-1], strict=True):
                difference = chunk.view(own).astype(np.float64)
                difference -= base
                difference *= weight
                total += difference
            total *= scale
            total += base
            _round(total, out, dtype, segment, first)

    return combine


def _round(total: npt.NDArray[np.float64], out: Values, dtype: str, segment: SegmentSpec, first: int) -> None:
    """Round values to a dtype, or raise `AggregationError` where it cannot hold one."""
    if dtype in INTEGERS:
        np.rint(total, out=total)
    rounded = total.astype(DTYPES[dtype])
    if dtype in INTEGERS:
        low, high = STORAGE[dtype].range
        fits = (total >= low) & (total <= high)
    else:
        fits = np.isfinite(rounded)
    if not fits.all():
        tensor, element = segment.at(first + int(np.argmin(fits)))
        raise AggregationError(
            f"tensor {tensor.name!r}: element {element} of the result, {total[np.argmin(fits)]:g}, "
            f"does not fit into {dtype}"
        )
    out.view(DTYPES[dtype])[:] = rounded


def _chunk_elements(budget: Budget, models: int) -> int:
    """Return how many elements of each model are read at once, or raise `BudgetError`."""
    each = 2 * 8 * models + WORK_BYTES
    elements = min(MOST_ELEMENTS, budget.nbytes // each // LEAST_ELEMENTS * LEAST_ELEMENTS)
    if not elements:
        raise BudgetError(
            f"{models} checkpoints at once take {each * LEAST_ELEMENTS >> 20}MiB or more, "
            f"and the budget is {budget.nbytes >> 20}MiB"
        )
    return elements
