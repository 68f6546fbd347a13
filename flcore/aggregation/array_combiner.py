"""Arrays in host memory or on a device: combined at once, or folded group by group."""

import math
import struct
from collections.abc import Sequence
from functools import cache, partial
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash
from flcore_layout import SegmentRange

from flcore.aggregation.admission_limits import require_positive_weight
from flcore.aggregation.combiner import Combiner
from flcore.aggregation.contributions import (
    ArrayContribution,
    ArraySink,
    Buffers,
    are_on_host,
    measured_ranges,
    model_ranges,
    segment_ranges,
    to_host,
)
from flcore.aggregation.range_inputs import RangeInputs
from flcore.aggregation.rule_plan import RulePlan
from flcore.errors import AggregationError, UpdateError

HEADROOM_EXPONENT = 16
"""By how many powers of two `RunningMean` lowers the scale of its weights, so that its mean stays away from overflow.

The largest scaled weight is then in [2^15, 2^16). A sum that stays below 2^128, divided by at least 2^15, is a mean
below 2^113. So on the usual scale, where weights are below 1, the mean and a group of admitted updates cannot overflow:
2^15 terms of 2^113 fit. Without this, a huge element of one client could be taken, and make a later group fail."""

Tensors = list[npt.NDArray[Any]]


def combine_arrays(
    combiner: Combiner,
    contributions: Sequence[ArrayContribution],
    targets: Buffers,
    *,
    is_in_place: bool = False,
    are_named: bool = True,
) -> RulePlan:
    """Write the combination of all contributions to a model's tensors, each segment in one pass where possible.

    Other rules than a sum, and passthrough elements, are combined in ranges. So is a result that overwrites an input:
    if the pass over a whole segment failed, its elements could not be read again. Returns what the rule has decided.
    Without names (`are_named`), ties go to the smaller digest.
    """
    keys = None if are_named else cache(partial(_digests, contributions))
    plan = combiner.plan(contributions, measured_ranges(combiner.spec), keys)
    remaining = [
        whole.segment
        for whole in segment_ranges(combiner.spec)
        if is_in_place or not _combine_segment(combiner, whole, plan, targets[whole.segment])
    ]
    if remaining:
        sink = ArraySink(combiner.spec, targets)
        for _ in combiner.run(plan, model_ranges(combiner.spec, segments=remaining), sink):
            pass
    return plan


def _digests(contributions: Sequence[ArrayContribution]) -> list[str]:
    """Return a text per contribution: a digest of all elements, and then the weight, in the order of its size.

    So equal updates of different weights are in one order too, and this order stays if all weights are scaled.
    """
    digests = []
    for contribution in contributions:
        digest = xxhash.xxh3_128()
        for buffer in (buffer for tensors in contribution.buffers for buffer in tensors):
            digest.update(to_host(buffer).view(np.uint8).data)
        digests.append(digest.hexdigest() + struct.pack(">d", contribution.weight).hex())
    return digests


def _combine_segment(combiner: Combiner, whole: SegmentRange, plan: RulePlan, out: list[Any]) -> bool:
    """Combine a segment in one pass. Return False if it must be combined in ranges."""
    # The kernels refuse a base that is not finite, but would round an integer base beyond 2^53.
    has_sentinels = whole.dtype in ("int64", "uint64") and combiner.has_passthrough(whole)
    if plan.columns is not None or plan.rest or has_sentinels:
        return False
    contributions = [each for each in plan.contributions if isinstance(each, ArrayContribution)]
    arrays = [contribution.buffers[whole.segment] for contribution in contributions]
    try:
        combiner.average(RangeInputs(whole, contributions, arrays, plan.coefficients), out)
    except (UpdateError, AggregationError):
        if not all(are_on_host(tensors) for tensors in (*arrays, out)):
            raise  # ranges are NumPy arrays
        return False
    return True


class ModelTotal:
    """The running total of admitted contributions, for a `Sum`. Its memory is allocated once and reused.

    Whole segments are folded at once, read in place. If the reference model has passthrough elements, ranges are
    folded instead, because each needs a copy with zeros. With `double_buffer`, float32 segments are running means
    (see `RunningMean`).
    """

    def __init__(self, combiner: Combiner, *, double_buffer: bool = False) -> None:
        ranges = segment_ranges(combiner.spec)
        self._combiner = combiner
        self._means = [
            RunningMean(combiner, whole)
            for whole in ranges
            if double_buffer and whole.dtype == "float32" and not combiner.has_passthrough(whole)
        ]
        averaged = [mean.whole for mean in self._means]
        ranges = [whole for whole in ranges if whole not in averaged]
        self._segments = [whole.segment for whole in ranges]
        self._are_whole = not any(combiner.has_passthrough(whole) for whole in ranges)
        self._ranges = ranges if self._are_whole else model_ranges(combiner.spec, segments=self._segments)
        self._totals = [combiner.new_total(range_) for range_ in self._ranges]
        self.coefficients: list[float] = []
        """The coefficients of all contributions that were folded."""

    def prepare(self, contributions: Sequence[ArrayContribution]) -> None:
        """Raise an `UpdateError` unless a group is within the limits, so that `fold` cannot fail in the middle."""
        # A running mean detects NaN and overflow itself, but not an element above `max_abs`.
        bounds_all = self._combiner.settings.max_abs < math.inf
        self._combiner.check_arrays(contributions, None if bounds_all else self._segments)
        for mean in self._means:
            mean.prepare(contributions)

    def fold(self, contributions: Sequence[ArrayContribution]) -> None:
        """Add a group. Running means take what `prepare` has computed."""
        coefficients = self._combiner.coefficients(contributions)
        for range_, total in zip(self._ranges, self._totals, strict=True):
            arrays = [
                contribution.buffers[range_.segment] if self._are_whole else contribution.read_range(range_)
                for contribution in contributions
            ]
            self._combiner.fold(total, RangeInputs(range_, contributions, arrays, coefficients))
        for mean in self._means:
            mean.commit()
        self.coefficients += coefficients

    def finish(self, targets: Buffers, *, may_replace: bool = False) -> None:
        """Write the mean of everything folded to a model's tensors.

        With `may_replace`, tensors in `targets` are replaced by those of running means, which saves a copy.
        """
        require_positive_weight(self.coefficients)
        sink = ArraySink(self._combiner.spec, targets)
        for range_, total in zip(self._ranges, self._totals, strict=True):
            if self._are_whole:
                self._combiner.finish(total, range_, targets[range_.segment])
            else:
                self._combiner.finish_into(sink, total, range_)
        for mean in self._means:
            values, index = mean.pop(), mean.whole.segment
            if may_replace:  # the replaced arrays were never written to, so they have no pages
                targets[index] = values
            else:
                for target, value in zip(targets[index], values, strict=True):
                    target[...] = value

    def clear(self) -> None:
        """Begin again, in the same memory."""
        for total in self._totals:
            self._combiner.reset_total(total)
        for mean in self._means:
            mean.clear()
        self.coefficients = []


class RunningMean:
    """The mean of one float32 segment so far, and a second buffer for the next one: 8 bytes per element.

    `prepare` writes the mean of the old mean and a group into the second buffer, and `commit` swaps the two. A group
    that is refused thus costs nothing, and no element is checked in a pass of its own. With enough memory, this is the
    fastest way to add updates one by one.
    """

    def __init__(self, combiner: Combiner, whole: SegmentRange) -> None:
        self._combiner, self.whole = combiner, whole
        self._mean: Tensors | None = None
        self._spare: Tensors | None = None
        self._weight = 0.0
        self._next_weight: float | None = None
        """The weight of the mean that `prepare` wrote; None if there is none to commit."""

    def prepare(self, contributions: Sequence[ArrayContribution]) -> None:
        """Write the next mean. Raises an `UpdateError` for a contribution that is not within the limits."""
        coefficients, index = self._combiner.coefficients(contributions), self.whole.segment
        weight, self._next_weight = math.fsum([self._weight, *coefficients]), None
        if weight == 0:  # there is no mean yet, but a NaN of weight 0 must be refused too
            self._combiner.check_arrays(contributions, [index])
            return
        spans = self._combiner.spec.segments[index].spans
        self._spare = self._spare or [np.empty(span.tensor.shape, np.float32) for span in spans]
        arrays = [contribution.buffers[index] for contribution in contributions]
        inputs = RangeInputs(self.whole, contributions, arrays, coefficients)
        if self._mean is not None:
            so_far = ArrayContribution("the mean so far", self._weight, self._combiner.spec, [])
            inputs = RangeInputs(
                self.whole, [so_far, *contributions], [self._mean, *arrays], [self._weight, *coefficients]
            )
        scale = math.frexp(max(inputs.coefficients))[1]
        try:
            self._combiner.average(inputs, self._spare, scale - HEADROOM_EXPONENT)
        except AggregationError:
            # Either an element is beyond the limits, and this raises its error, or an admissible sum came near 2^128.
            self._combiner.check_arrays(contributions, [index])
            self._combiner.average(inputs, self._spare, scale)
        self._next_weight = weight

    def commit(self) -> None:
        """Take the new mean. The buffer of the old one is written to next."""
        if self._next_weight is not None:
            self._mean, self._spare, self._weight = self._spare, self._mean, self._next_weight
        self._next_weight = None

    def pop(self) -> Tensors:
        """Return the mean in its buffer, which now belongs to the caller, and begin again."""
        mean, self._mean = self._mean, None
        self.clear()
        return mean or []

    def clear(self) -> None:
        """Drop the mean, and keep one buffer."""
        self._spare, self._mean, self._weight, self._next_weight = self._spare or self._mean, None, 0.0, None
