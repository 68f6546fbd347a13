"""Limits of weights and elements at admission, so that no admitted update can make a round fail.

They follow from the accumulator, the base, the result's dtype and the largest number of updates, on a fixed scale of
weights. They do not depend on other updates, so one client cannot make another one's update inadmissible.
"""

import math
import numbers
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NoReturn

import numpy as np
from flcore_kernels import ACCUMULATORS, EXACT_RANGE, MAX_TERMS, STORAGE, Backend, storage_dtype
from flcore_layout import SegmentRange

from flcore.aggregation.contributions import to_host
from flcore.aggregation.passthrough import Mask, Values, differing_bits, passthrough_mask, zero_where
from flcore.aggregation.reference_model import ReferenceModel
from flcore.errors import JobError, NonFinite, OutOfBounds, WeightError
from flcore.model.compression import KernelArray, to_float32
from flcore.model.dtypes import DTYPES, INTEGERS
from flcore.model.spec import ModelSpec
from flcore.rules.kinds import Chain, Rule

MAX_UPDATES = MAX_TERMS
"""The largest number of updates of a round: n < 2^16 in the bounds below."""

WEIGHT_RANGES = {"exact": EXACT_RANGE, "float64": (2.0**-400, 2.0**400), "float32": (2.0**-24, 2.0**40)}
"""The accumulators' ranges of weights other than 0. Upper ends leave headroom for elements; lower ends keep terms of
ordinary elements out of the denormal numbers, which have fewer digits."""

# A sum must stay finite. In float32, let |c·x| <= T for each of n < 2^16 terms. Kernels of a mean divide weights by the
# power of two of the largest one. If that is below 1, this multiplies, up to c <= 2, so T counts twice. Each rounding
# adds at most a factor 1 + 2^-24, and (1 + 2^-24)^n < 2^(1/64). So
#     |sum| < 2^16 · 2 · T · 2^(1/64) < 2^128   for T = 2^110.
# In float64, likewise: 2^16 · 2 · 2^1006 · (1 + 2^-53)^n < 2^1024. In an exact sum, digits cannot overflow (a digit is
# at most 2^47, and n · 2^47 < 2^63), but fl64(c·x) must be finite: 2^-50 below the end it does not round to infinity.
MAX_TERM = {"exact": float(np.finfo(np.float64).max) * (1 - 2.0**-50), "float64": 2.0**1006, "float32": 2.0**110}
"""The bound T of max(1, coefficient) · |element|."""

# A mean m = Σ cᵢxᵢ / Σ cᵢ is computed as m', with |m' - m| <= ε · Σ cᵢ|xᵢ| / Σ cᵢ. With a unit roundoff u, each of n
# terms passes at most n roundings, so ε <= 2 · n · u; the factor 2 covers products, weights and the division:
#     float32: 2 · 2^16 · 2^-24 = 2^-7     float64: 2 · 2^16 · 2^-53 = 2^-36
# An exact sum keeps 2^-48 of the largest magnitude among 64 neighbours; 2^-45 has a margin.
MAX_RELATIVE_ERROR = {"exact": 2.0**-45, "float64": 2.0**-36, "float32": 2.0**-7}
"""The bound ε of a mean's error, relative to the weighted mean of its elements' magnitudes."""


MAX_MEASURED = 2.0**470
"""The bound of a float where a `Chain` measures distances. With n < 2^16 updates of less than 2^48 elements, a squared
distance is below 2^48 · (2 · 2^470)^2 = 2^990, and a sum of n of them below 2^1006. Only float64 has larger values."""


def require_accumulator(accumulate: str) -> str:
    """Return the name of an accumulator, or raise `JobError`."""
    if accumulate not in ACCUMULATORS:
        raise JobError(f"accumulate {accumulate!r} does not exist; expected one of {', '.join(ACCUMULATORS)}")
    return accumulate


def accumulator_for(dtype: str, accumulate: str) -> str:
    """Return the accumulator of a segment. Integers are always summed exactly."""
    return "exact" if dtype in INTEGERS else accumulate


def require_positive_weight(coefficients: Sequence[float]) -> None:
    """Raise `WeightError` if all coefficients are zero: their mean would be 0 / 0."""
    if not math.fsum(coefficients) > 0:
        raise WeightError(f"the weights of all {len(coefficients)} updates are zero")


def tensor_values(spec: ModelSpec, range_: SegmentRange, array: KernelArray) -> Values:
    """Return a range's elements in the tensors' dtype, decoded if they are narrower on the wire."""
    dtype = spec.segments[range_.segment].dtype
    if range_.dtype == dtype:
        return to_host(array).view(DTYPES[dtype])
    return to_float32(range_.dtype, array).astype(DTYPES[dtype], copy=False)


@dataclass(frozen=True)
class AggregationSettings:
    """The settings of an aggregation, for any model. Raises `JobError` for invalid ones.

    `max_abs` bounds magnitudes in addition to the limits of arithmetic. `average_bytes` declares that unsigned bytes
    are numbers and not packed codes. `max_share` bounds the share of one update in the sum of all weights. `seed` is
    for rules with random choices, such as bucketing.
    """

    rule: Rule
    accumulate: str
    device: Backend
    average_bytes: bool = False
    max_abs: float = math.inf
    max_share: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        require_accumulator(self.accumulate)
        if not self.max_abs > 0:
            raise JobError(f"max_abs: expected a number above 0, got {self.max_abs!r}")
        if not 0 < self.max_share <= 1:
            raise JobError(f"max_share: expected a number above 0 and at most 1, got {self.max_share!r}")


class AdmissionLimits:
    """The limits of a combination whose results have `dtypes`, one per segment (default: the model's).

    With a reference model, passthrough elements must be equal to that model's, and so must unsigned bytes unless they
    are averaged. In differences, both must be zero. `accumulators` has one accumulator per segment.
    """

    def __init__(
        self,
        spec: ModelSpec,
        settings: AggregationSettings,
        reference_model: ReferenceModel | None = None,
        dtypes: Sequence[str] = (),
    ) -> None:
        self._spec, self._settings, self._reference_model = spec, settings, reference_model
        self.dtypes = tuple(dtypes) or tuple(segment.dtype for segment in spec.segments)
        self.accumulators = [accumulator_for(segment.dtype, settings.accumulate) for segment in spec.segments]
        self._strictest = "exact" if "exact" in self.accumulators else settings.accumulate

    def check_weight(self, weight: Any, client: str) -> float:
        """Return a weight as a float, or raise `WeightError` unless it is 0 or within the accumulator's range.

        0 is admitted here, as callers have all updates: they may weight one out, and `require_positive_weight` refuses
        a round of zeros. A job refuses 0 at the upload (`check_content` in `flcore/server/uploads.py`): such an update
        would count for the quorum and contribute nothing.
        """
        is_number = isinstance(weight, numbers.Real) and not isinstance(weight, bool)
        try:
            value = float(weight) if is_number else math.nan
        except OverflowError:
            value = math.inf
        if not 0 <= value < math.inf:
            raise WeightError(f"a weight is a finite number >= 0, not {weight!r}", client=client)
        low, high = WEIGHT_RANGES[self._strictest]
        if value != 0 and not low <= value <= high:
            raise WeightError(
                f"{self._strictest} sums take weights that are 0 or between 2^{math.log2(low):.0f} and "
                f"2^{math.log2(high):.0f}, not {weight!r} (scale all weights alike, or choose another accumulator)",
                client=client,
            )
        return value

    def max_magnitude(self, segment: int, coefficient: float) -> float:
        """Return the largest magnitude that an element may have in an update of this coefficient."""
        dtype, result, accumulate = self._spec.segments[segment].dtype, self.dtypes[segment], self.accumulators[segment]
        error = MAX_RELATIVE_ERROR[accumulate]
        # |mean| <= max |x| · (1 + ε). If ε is below half a unit of the result's last place, rounding to the result's
        # dtype removes it. If not, elements stay ε below the dtype's end: (1 - ε)(1 + ε) < 1.
        may_exceed = result not in INTEGERS and error >= 2.0 ** -(STORAGE[result].precision + 1)
        headroom = 1 - error if may_exceed else 1.0
        ends = max(map(abs, STORAGE[dtype].range)), max(map(abs, STORAGE[result].range)) * headroom
        rule = self._settings.rule
        is_measured = isinstance(rule, Chain) and rule.measures and dtype not in INTEGERS
        measured = MAX_MEASURED if is_measured else math.inf
        return min(self._settings.max_abs, MAX_TERM[accumulate] / max(1.0, coefficient), measured, *ends)

    def check_range(self, range_: SegmentRange, array: KernelArray, coefficient: float, client: str) -> None:
        """Raise `NonFinite` or `OutOfBounds`, naming client and tensor, unless elements are within the limits.

        One pass of a kernel decides for nearly all ranges. All other steps are for passthrough elements, for errors,
        and for bases near a dtype's end.
        """
        limit, reference_model = self.max_magnitude(range_.segment, coefficient), self._reference_model
        seen = self._settings.device.inspect(array, range_.dtype)
        if reference_model is not None and (
            seen.first_bad >= 0 or seen.magnitude > limit or reference_model.has_passthrough(range_)
        ):
            array = self._zero_passthrough(reference_model, range_, array, client)
            range_ = replace(range_, dtype=self._spec.segments[range_.segment].dtype)
            seen = self._settings.device.inspect(array, range_.dtype)
        if seen.first_bad >= 0:
            self._refuse(range_, tensor_values(self._spec, range_, array), seen.first_bad, client)
        if seen.magnitude > limit:
            # Integers are compared as stored: a byte that is not 0 or 1 would become True in a boolean's dtype.
            values = array if range_.dtype in INTEGERS else tensor_values(self._spec, range_, array)
            where = int(np.argmax(np.abs(to_host(values).astype(np.float64))))
            why = f"has magnitude {seen.magnitude:g}, more than the {limit:g} allowed"
            self._refuse(range_, to_host(values), where, client, why)
        if reference_model is not None and range_.dtype == "uint8" and not self._settings.average_bytes:
            values = tensor_values(self._spec, range_, array)
            self._require_reference_elements(reference_model, range_, values, np.ones(values.size, np.bool_), client)
        if reference_model is not None and reference_model.updates_are_deltas:
            self._require_headroom(reference_model, range_, array, seen.magnitude, client)

    def _zero_passthrough(
        self, reference_model: ReferenceModel, range_: SegmentRange, array: KernelArray, client: str
    ) -> Values:
        """Return a range's elements in storage form, with zeros for passthrough elements. Raises if one differs."""
        values = tensor_values(self._spec, range_, array)
        mask = passthrough_mask(values) | reference_model.passthrough_mask(range_)
        self._require_reference_elements(reference_model, range_, values, mask, client)
        return zero_where(values, mask).view(storage_dtype(self._spec.segments[range_.segment].dtype))

    def _require_reference_elements(
        self, reference_model: ReferenceModel, range_: SegmentRange, values: Values, mask: Mask, client: str
    ) -> None:
        """Raise `NonFinite` or `OutOfBounds` where a masked element differs from the reference model's."""
        if reference_model.updates_are_deltas:
            differs = mask & (values != 0)
        else:
            differs = mask & differing_bits(values, reference_model.values(range_))
        if differs.any():
            where = int(np.argmax(differs))
            why = f"is {values[where]}, where the model that was sent has {reference_model.values(range_)[where]}"
            if range_.dtype == "uint8":
                why += ": bytes may be packed codes, so they must stay as they are (average_bytes=True averages them)"
            elif reference_model.passthrough_mask(range_)[where]:
                why += ": NaN, infinities and integers beyond 2**53 are not averaged, so they must stay as they are"
            self._refuse(range_, values, where, client, why)

    def _require_headroom(
        self, reference_model: ReferenceModel, range_: SegmentRange, array: KernelArray, magnitude: float, client: str
    ) -> None:
        """Raise `OutOfBounds` where base plus element leaves the result's dtype.

        The result is b + m', with |m' - m| <= ε · Σ cᵢ|dᵢ| / Σ cᵢ for the differences dᵢ. So it lies between the
        smallest b + dᵢ - ε|dᵢ| and the largest b + dᵢ + ε|dᵢ|, and fits if the bounds of each update do. This does not
        depend on the other updates.
        """
        dtype, error = self.dtypes[range_.segment], MAX_RELATIVE_ERROR[self.accumulators[range_.segment]]
        low, high = STORAGE[dtype].range
        # The largest magnitudes decide for nearly all ranges: |b| + |d|(1 + ε) <= end. This side is computed with a few
        # roundings of 2^-53, which 2^-50 covers. (An unsigned dtype's low end is 0; base and difference are not below.)
        if reference_model.magnitude(range_) + magnitude * (1 + error) <= min(high, -low or high) * (1 - 2.0**-50):
            return
        values, base = tensor_values(self._spec, range_, array), reference_model.values(range_)
        wide = np.longdouble if values.dtype.itemsize == 8 else np.float64
        # A sum up to half a step beyond the end rounds back to it. Sums of integers are exact, so there ε is 0.
        half_step = 2.0 ** (math.frexp(high)[1] - 1 - STORAGE[dtype].precision)
        half_step, error = (0.5, 0.0) if dtype in INTEGERS else (half_step, error)
        with np.errstate(all="ignore"):
            sums, spread = base.astype(wide) + values.astype(wide), np.abs(values.astype(wide)) * error
            fits = (sums + spread < wide(high) + wide(half_step)) & (sums - spread > wide(low) - wide(half_step))
        leaves = ~fits & ~passthrough_mask(base)
        if leaves.any():
            where = int(np.argmax(leaves))
            why = f"is {values[where]}: with the base, {base[where]}, it leaves {dtype}"
            self._refuse(range_, values, where, client, why)

    def _refuse(self, range_: SegmentRange, values: Values, where: int, client: str, why: str = "") -> NoReturn:
        """Raise `NonFinite` or `OutOfBounds` for one of a range's elements."""
        tensor, element = self._spec.segments[range_.segment].locate(range_.first + where)
        kind = OutOfBounds if np.isfinite(values[where]) else NonFinite
        raise kind(f"element {element} {why or f'is {values[where]}'}", client=client, tensor=tensor.name)
