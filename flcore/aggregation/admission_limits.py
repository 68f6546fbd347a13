"""Limits of weights and elements at admission, so that no admitted update can make a round fail.

They follow from the accumulator, the base, the result's dtype and the number of updates that a round takes, on a fixed
scale of weights. They do not depend on other updates.
"""

import math
import numbers
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NoReturn

import numpy as np
from flcore_kernels import ACCUMULATORS, EXACT_RANGE, STORAGE, Backend, storage_dtype
from flcore_layout import SegmentRange

from flcore.aggregation.contributions import to_host
from flcore.aggregation.reference_model import Mask, ReferenceModel, Values, constant_mask, differing_bits, zero_where
from flcore.aggregation.rules import Rule
from flcore.errors import JobError, NonFinite, OutOfBounds, WeightError
from flcore.model.compression import KernelArray, to_float32
from flcore.model.dtypes import DTYPES, INTEGERS
from flcore.model.spec import ModelSpec

MAX_UPDATES = 65_535
"""As many terms as an exact sum takes."""

WEIGHT_RANGES = {"exact": EXACT_RANGE, "float64": (2.0**-400, 2.0**400), "float32": (2.0**-24, 2.0**40)}
"""The range of weights beside 0. The upper ends leave headroom for elements, the lower ones keep their precision."""

MAX_TERM = {"exact": float(np.finfo(np.float64).max) * (1 - 2.0**-50), "float64": 2.0**1006, "float32": 2.0**110}
"""What a weight (or 1, if that is more) times an element may be: 65,535 such terms and their roundings stay within
float64 and float32, also where weights are divided by a power of two up to the largest. Exact sums take any terms."""

MAX_RELATIVE_ERROR = {"exact": 2.0**-45, "float64": 2.0**-36, "float32": 2.0**-7}
"""By how much a mean may be off, relative to the largest magnitude: 65,535 roundings of half a unit of the last place
each, with a margin; an exact sum keeps 2^-48 of the largest magnitude."""


def require_accumulator(accumulate: str) -> str:
    """Return the name of an accumulator, or raise `JobError`."""
    if accumulate not in ACCUMULATORS:
        raise JobError(f"accumulate {accumulate!r} does not exist; expected one of {', '.join(ACCUMULATORS)}")
    return accumulate


def accumulator_for(dtype: str, accumulate: str) -> str:
    """Return the accumulator of a segment. Integers are always summed exactly."""
    return "exact" if dtype in INTEGERS else accumulate


def require_positive_weight(coefficients: Sequence[float]) -> None:
    """Raise `WeightError` if all weights are zero."""
    if not math.fsum(coefficients) > 0:
        raise WeightError(f"the weights of all {len(coefficients)} updates are zero")


def tensor_values(spec: ModelSpec, piece: SegmentRange, part: KernelArray) -> Values:
    """Return a part's elements in the tensors' dtype, decompressed if they were compressed on the wire."""
    own = spec.segments[piece.segment].dtype
    if piece.dtype == own:
        return to_host(part).view(DTYPES[own])
    return to_float32(piece.dtype, part).astype(DTYPES[own], copy=False)


@dataclass(frozen=True)
class AggregationSettings:
    """The settings of an aggregation, for any model. Raises `JobError` for settings that are invalid for every round.

    `max_abs` bounds magnitudes beside what arithmetic allows; `average_bytes` says that unsigned bytes are numbers.
    """

    rule: Rule
    accumulate: str
    device: Backend
    average_bytes: bool = False
    max_abs: float = math.inf

    def __post_init__(self) -> None:
        require_accumulator(self.accumulate)
        if not self.max_abs > 0:
            raise JobError(f"max_abs: expected a number above 0, got {self.max_abs!r}")


class AdmissionLimits:
    """What may be admitted to a combination whose results have `dtypes`, one per segment (default: the model's).

    With a reference model, elements that are no quantities must be that model's (its differences zero), and so
    must unsigned bytes, unless they are averaged. `accumulators` are what segments are summed in.
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
        """Return a weight as a float, or raise `WeightError`: it is 0, or a number within the accumulator's range."""
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
        own, result, accumulate = self._spec.segments[segment].dtype, self.dtypes[segment], self.accumulators[segment]
        is_near = result not in INTEGERS and MAX_RELATIVE_ERROR[accumulate] >= 2.0 ** -(STORAGE[result].precision + 1)
        room = 1 - MAX_RELATIVE_ERROR[accumulate] if is_near else 1.0  # else what a mean is off is rounded away
        ends = max(map(abs, STORAGE[own].range)), max(map(abs, STORAGE[result].range)) * room
        return min(self._settings.max_abs, MAX_TERM[accumulate] / max(1.0, coefficient), *ends)

    def check(self, piece: SegmentRange, part: KernelArray, coefficient: float, client: str) -> None:
        """Raise `NonFinite` or `OutOfBounds`, naming the tensor, unless a range's elements may be admitted."""
        limit, reference_model = self.max_magnitude(piece.segment, coefficient), self._reference_model
        seen = self._settings.device.inspect(part, piece.dtype)
        if reference_model is not None and (
            seen.first_bad >= 0 or seen.magnitude > limit or reference_model.has_constants(piece)
        ):
            part = self._zero_constants(reference_model, piece, part, client)
            piece = replace(piece, dtype=self._spec.segments[piece.segment].dtype)
            seen = self._settings.device.inspect(part, piece.dtype)
        if seen.first_bad >= 0:
            self._refuse(piece, tensor_values(self._spec, piece, part), seen.first_bad, client)
        if seen.magnitude > limit:
            values = part if piece.dtype in INTEGERS else tensor_values(self._spec, piece, part)  # a boolean may be 7
            where = int(np.argmax(np.abs(to_host(values).astype(np.float64))))
            why = f"has magnitude {seen.magnitude:g}, more than the {limit:g} allowed"
            self._refuse(piece, to_host(values), where, client, why)
        if reference_model is not None and piece.dtype == "uint8" and not self._settings.average_bytes:
            values = tensor_values(self._spec, piece, part)
            self._require_constants(reference_model, piece, values, np.ones(values.size, np.bool_), client)
        if reference_model is not None and reference_model.are_deltas:
            self._require_headroom(reference_model, piece, part, seen.magnitude, client)

    def _zero_constants(
        self, reference_model: ReferenceModel, piece: SegmentRange, part: KernelArray, client: str
    ) -> Values:
        """Return a range's elements as they are stored, with zeros for those that are no quantities."""
        values = tensor_values(self._spec, piece, part)
        mask = constant_mask(values) | reference_model.constant_mask(piece)
        self._require_constants(reference_model, piece, values, mask, client)
        return zero_where(values, mask).view(storage_dtype(self._spec.segments[piece.segment].dtype))

    def _require_constants(
        self, reference_model: ReferenceModel, piece: SegmentRange, values: Values, mask: Mask, client: str
    ) -> None:
        """Raise `NonFinite` or `OutOfBounds` where an element that the mask names is not the reference model's."""
        differs = mask & (
            values != 0 if reference_model.are_deltas else differing_bits(values, reference_model.values(piece))
        )
        if differs.any():
            where = int(np.argmax(differs))
            why = f"is {values[where]}, where the model that was sent has {reference_model.values(piece)[where]}"
            if piece.dtype == "uint8":
                why += ": bytes may be packed codes, so they must stay as they are (average_bytes=True averages them)"
            elif reference_model.constant_mask(piece)[where]:
                why += ": NaN, infinities and integers beyond 2**53 are not averaged, so they must stay as they are"
            self._refuse(piece, values, where, client, why)

    def _require_headroom(
        self, reference_model: ReferenceModel, piece: SegmentRange, part: KernelArray, magnitude: float, client: str
    ) -> None:
        """Raise `OutOfBounds` where base plus element leaves the result's dtype; looks at elements only near its end.

        The result lies between the smallest and the largest sum of base and difference, so it fits if each sum does.
        """
        dtype, slack = self.dtypes[piece.segment], MAX_RELATIVE_ERROR[self.accumulators[piece.segment]]
        low, high = STORAGE[dtype].range
        if reference_model.magnitude(piece) + magnitude * (1 + slack) <= min(high, -low or high) * (1 - 2.0**-50):
            return
        values, base = tensor_values(self._spec, piece, part), reference_model.values(piece)
        wide = np.longdouble if values.dtype.itemsize == 8 else np.float64
        half = 2.0 ** (math.frexp(high)[1] - 1 - STORAGE[dtype].precision)  # of a step: less is rounded back
        half, slack = (0.5, 0.0) if dtype in INTEGERS else (half, slack)
        with np.errstate(all="ignore"):
            sums, spread = base.astype(wide) + values.astype(wide), np.abs(values.astype(wide)) * slack
            fits = (sums + spread < wide(high) + wide(half)) & (sums - spread > wide(low) - wide(half))
        leaves = ~fits & ~constant_mask(base)
        if leaves.any():
            where = int(np.argmax(leaves))
            why = f"is {values[where]}: with the base, {base[where]}, it leaves {dtype}"
            self._refuse(piece, values, where, client, why)

    def _refuse(self, piece: SegmentRange, values: Values, where: int, client: str, why: str = "") -> NoReturn:
        """Raise `NonFinite` or `OutOfBounds` for one of a range's elements."""
        tensor, element = self._spec.segments[piece.segment].locate(piece.first + where)
        kind = OutOfBounds if np.isfinite(values[where]) else NonFinite
        raise kind(f"element {element} {why or f'is {values[where]}'}", client=client, tensor=tensor.name)
