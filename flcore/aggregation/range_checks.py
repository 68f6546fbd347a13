"""Checks of contributions side by side: which elements are passed through, and which contribution is at fault.

The sum is tried first (see `Combiner.combine`), so these checks run where it failed, where the rule is `Columns` or
`Geometry`, and where an adapter must know before it changes a total.
"""

import math
from collections.abc import Sequence

import numpy as np

from flcore.aggregation.admission_limits import AdmissionLimits, AggregationSettings
from flcore.aggregation.contributions import ArrayContribution, segment_ranges, to_host
from flcore.aggregation.passthrough import Mask, Values, is_free_of_passthrough, shared_passthrough, zero_where
from flcore.aggregation.range_inputs import RangeInputs
from flcore.aggregation.reference_model import ReferenceModel
from flcore.errors import OutOfBounds
from flcore.model.spec import ModelSpec


class RangeChecks:
    """Checks all contributions to a range. The coefficients given to its methods are those that bound elements."""

    def __init__(
        self,
        spec: ModelSpec,
        settings: AggregationSettings,
        limits: AdmissionLimits,
        reference_model: ReferenceModel | None,
    ) -> None:
        self._spec, self._settings, self._limits, self._reference_model = spec, settings, limits, reference_model

    def check_arrays(
        self,
        contributions: Sequence[ArrayContribution],
        coefficients: Sequence[float],
        segments: Sequence[int] | None = None,
    ) -> None:
        """Raise `NonFinite` or `OutOfBounds`, naming client and tensor, unless arrays are within the limits.

        The largest magnitude of a segment decides for nearly all arrays. Only where it exceeds the limit, or where
        elements are compared with the reference model, is the segment read again in ranges.
        """
        reference_model, device = self._reference_model, self._settings.device
        for whole in segment_ranges(self._spec, segments):
            magnitudes = device.max_abs(
                [contribution.buffers[whole.segment] for contribution in contributions], whole.dtype
            )
            needs_reference = reference_model is not None and (
                reference_model.updates_are_deltas or whole.dtype == "uint8" or reference_model.has_passthrough(whole)
            )
            for contribution, coefficient, magnitude in zip(contributions, coefficients, magnitudes, strict=True):
                # "not <=" and not ">": the magnitude of an array with a NaN is NaN.
                if needs_reference or not magnitude <= self._limits.max_magnitude(whole.segment, coefficient):
                    for range_, array in contribution.tensor_ranges(whole.segment):
                        self._limits.check_range(range_, array, coefficient, contribution.client)

    def require_same_bytes(self, inputs: RangeInputs) -> None:
        """Raise `OutOfBounds` where unsigned bytes differ: they may be packed codes, which have no mean.

        With a reference model, `AdmissionLimits.check_range` compares them with that.
        """
        range_, arrays = inputs.range_, inputs.arrays
        if range_.dtype != "uint8" or self._settings.average_bytes or self._reference_model is not None:
            return
        segment, are_lists = self._spec.segments[range_.segment], isinstance(arrays[0], list)
        firsts = [span.start for span in segment.spans] if are_lists else [range_.first]
        for number, first in enumerate(firsts):
            columns = [to_host(array[number] if are_lists else array) for array in arrays]
            for contribution, column in zip(inputs.contributions, columns, strict=True):
                if column.data != columns[0].data:
                    tensor, element = segment.locate(first + int(np.argmax(column != columns[0])))
                    raise OutOfBounds(
                        f"element {element} differs from that of {inputs.contributions[0].client!r}: unsigned bytes "
                        "are not averaged, as they may be packed codes (if they are numbers: average_bytes=True, or "
                        "on the command line --average-bytes)",
                        client=contribution.client,
                        tensor=tensor.name,
                    )

    def checked_columns(self, inputs: RangeInputs, coefficients: Sequence[float]) -> tuple[list[Values], Mask, Values]:
        """Return a range's elements in the tensors' dtype, or raise an `UpdateError` unless all are within the limits.

        Returns:
            The columns, with zeros for passthrough elements; which elements are passed through; and their values.
        """
        columns, range_ = inputs.columns(self._spec), inputs.range_
        stored, magnitudes = inputs.with_columns(self._spec, columns), [math.inf] * len(columns)
        if self._reference_model is not None:
            # The limits compare each update with the reference model, so the mask is that model's, and all magnitudes
            # are infinite to have every update compared.
            mask, passed = self._reference_model.passthrough_mask(range_), self._reference_model.values(range_)
        else:
            self.require_same_bytes(stored)
            dtype, passed = stored.range_.dtype, columns[0]
            magnitudes = self._settings.device.max_abs(stored.arrays, dtype)
            mask, offender = np.zeros(range_.count, np.bool_), -1
            if not all(is_free_of_passthrough(dtype, magnitude) for magnitude in magnitudes):
                mask, offender = shared_passthrough(columns)
            if mask.any() and offender < 0:
                columns = [zero_where(column, mask) for column in columns]
                stored = inputs.with_columns(self._spec, columns)
            # With an offender, nothing is set to zero: the check below finds its element, and names client and tensor.
        for contribution, coefficient, array, magnitude in zip(
            inputs.contributions, coefficients, stored.arrays, magnitudes, strict=True
        ):
            if not magnitude <= self._limits.max_magnitude(range_.segment, coefficient):
                self._limits.check_range(stored.range_, array, coefficient, contribution.client)
        if self._reference_model is not None and mask.any():
            columns = [zero_where(column, mask) for column in columns]
        return columns, mask, passed
