"""Arrays in memory or on a device: combined at once, or added up group by group."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from flcore_layout import SegmentRange

from flcore.aggregation.admission_limits import require_positive_weight
from flcore.aggregation.combiner import Batch, Combiner
from flcore.aggregation.contributions import (
    ArrayContribution,
    ArraySink,
    Buffers,
    are_on_host,
    model_ranges,
    segment_ranges,
)
from flcore.aggregation.rules import Sum
from flcore.errors import AggregationError, UpdateError

HEADROOM_EXPONENT = 16
"""Powers of two between the largest element that the mean takes unseen and the end of float32."""

Tensors = list[npt.NDArray[Any]]


def combine_arrays(
    combiner: Combiner, contributions: Sequence[ArrayContribution], targets: Buffers, *, is_in_place: bool = False
) -> None:
    """Write the combination of all contributions to a model's tensors, each segment in one pass where that is possible.

    A rule that is no sum, and constants, need ranges. So does a result in place of what is read: after an error, a
    segment could not be read again.
    """
    if isinstance(combiner.rule, Sum):
        require_positive_weight(combiner.coefficients(contributions))
    left = [
        whole.segment
        for whole in segment_ranges(combiner.spec)
        if is_in_place or not _combine_segment(combiner, whole, contributions, targets[whole.segment])
    ]
    if left:
        sink = ArraySink(combiner.spec, targets)
        for _ in combiner.run(contributions, model_ranges(combiner.spec, segments=left), sink):
            pass


def _combine_segment(
    combiner: Combiner, whole: SegmentRange, contributions: Sequence[ArrayContribution], out: list[Any]
) -> bool:
    """Combine a segment in one pass; return whether that was possible."""
    has_sentinels = whole.dtype in ("int64", "uint64") and combiner.has_constants(whole)
    if not isinstance(combiner.rule, Sum) or has_sentinels:  # a base beyond 2^53 would be rounded without a word
        return False
    parts = [each.buffers[whole.segment] for each in contributions]
    try:
        combiner.average(Batch(whole, contributions, parts, combiner.coefficients(contributions)), out)
    except (UpdateError, AggregationError):
        if not all(are_on_host(tensors) for tensors in (*parts, out)):
            raise
        return False
    return True


class ModelTotal:
    """The running total of admitted contributions, for a `Sum`. Its memory is allocated at once, and freed with it.

    Constants of the reference model need ranges, as copies without them are made range by range; else whole segments
    are added at once. With `may_double`, float32 segments are running means (see `RunningMean`).
    """

    def __init__(self, combiner: Combiner, *, may_double: bool = False) -> None:
        pieces = segment_ranges(combiner.spec)
        self._combiner = combiner
        self._means = [
            RunningMean(combiner, piece)
            for piece in pieces
            if may_double and piece.dtype == "float32" and not combiner.has_constants(piece)
        ]
        averaged = [mean.piece for mean in self._means]
        pieces = [piece for piece in pieces if piece not in averaged]
        self._segments = [piece.segment for piece in pieces]
        self._are_whole = not any(combiner.has_constants(piece) for piece in pieces)
        self._pieces = pieces if self._are_whole else model_ranges(combiner.spec, segments=self._segments)
        self._totals = [combiner.total(piece) for piece in self._pieces]
        self.coefficients: list[float] = []
        """Of all that was added."""

    def prepare(self, contributions: Sequence[ArrayContribution]) -> None:
        """Raise an `UpdateError` unless a group may be admitted, so that adding it goes well."""
        bounds_all = self._combiner.settings.max_abs < math.inf  # else a mean shows by itself what it may not take
        self._combiner.admit(contributions, None if bounds_all else self._segments)
        for mean in self._means:
            mean.prepare(contributions)

    def fold(self, contributions: Sequence[ArrayContribution]) -> None:
        """Add a group, all of it; means take what `prepare` has made."""
        by = self._combiner.coefficients(contributions)
        for piece, total in zip(self._pieces, self._totals, strict=True):
            parts = [
                each.buffers[piece.segment] if self._are_whole else each.read_range(piece) for each in contributions
            ]
            self._combiner.fold(total, Batch(piece, contributions, parts, by))
        for mean in self._means:
            mean.commit()
        self.coefficients += by

    def finish(self, targets: Buffers, *, may_replace: bool = False) -> None:
        """Write the combination of all that was added to a model's tensors, or put others in their place."""
        require_positive_weight(self.coefficients)
        sink = ArraySink(self._combiner.spec, targets)
        for piece, total in zip(self._pieces, self._totals, strict=True):
            if self._are_whole:
                self._combiner.finish(total, piece, targets[piece.segment])
            else:
                self._combiner.finish_into(sink, total, piece)
        for mean in self._means:
            values, index = mean.pop(), mean.piece.segment
            if may_replace:  # what was there takes no memory before it is written to
                targets[index] = values
            else:
                for target, each in zip(targets[index], values, strict=True):
                    target[...] = each

    def clear(self) -> None:
        """Begin anew, in the same memory."""
        for total in self._totals:
            self._combiner.reset_total(total)
        for mean in self._means:
            mean.clear()
        self.coefficients = []


class RunningMean:
    """The mean of one float32 segment so far, and memory for the next one: 8 bytes per element.

    The mean of what there was and what came is written elsewhere, and taken if it is sound. No element is looked at
    first, so this is the fastest way to add one update after the other, where there is memory.
    """

    def __init__(self, combiner: Combiner, whole: SegmentRange) -> None:
        self._combiner, self.piece = combiner, whole
        self._mean: Tensors | None = None
        self._spare: Tensors | None = None
        self._next_weight: float | None = None
        self._weight = 0.0

    def prepare(self, contributions: Sequence[ArrayContribution]) -> None:
        """Write the next mean. Raises an `UpdateError` for a contribution that may not be admitted."""
        by, index = self._combiner.coefficients(contributions), self.piece.segment
        weight, self._next_weight = math.fsum([self._weight, *by]), None
        if weight == 0:
            self._combiner.admit(contributions, [index])
            return
        spans = self._combiner.spec.segments[index].spans
        self._spare = self._spare or [np.empty(span.tensor.shape, np.float32) for span in spans]
        batch = Batch(self.piece, contributions, [each.buffers[index] for each in contributions], by)
        if self._mean is not None:
            so_far = ArrayContribution("the mean so far", self._weight, self._combiner.spec, [])
            batch = Batch(self.piece, [so_far, *contributions], [self._mean, *batch.arrays], [self._weight, *by])
        scale = math.frexp(max(batch.coefficients))[1]
        try:  # on a scale on which what may not be admitted overflows, and most of what may be does not
            self._combiner.average(batch, self._spare, scale - HEADROOM_EXPONENT)
        except AggregationError:
            self._combiner.admit(contributions, [index])  # raises for the contribution that causes the error, if any
            self._combiner.average(batch, self._spare, scale)
        self._next_weight = weight

    def commit(self) -> None:
        """Take the new mean; the memory of the old one is the next to be written to."""
        if self._next_weight is not None:
            self._mean, self._spare, self._weight = self._spare, self._mean, self._next_weight
        self._next_weight = None

    def pop(self) -> Tensors:
        """Return the mean, in memory that is the caller's from now on, and begin anew."""
        mean, self._mean = self._mean, None
        self.clear()
        return mean or []

    def clear(self) -> None:
        """Let the mean go; its memory stays."""
        self._spare, self._mean, self._weight, self._next_weight = self._spare or self._mean, None, 0.0, None
