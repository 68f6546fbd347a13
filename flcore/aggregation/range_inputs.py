"""The inputs of the kernels for one range: each contribution's elements and its coefficient in the sum."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from flcore_kernels import storage_dtype
from flcore_layout import SegmentRange
from flcore_transport.piece_format import body_bytes

from flcore.aggregation.admission_limits import tensor_values
from flcore.aggregation.contributions import Contribution
from flcore.aggregation.passthrough import Values
from flcore.model.compression import view_body
from flcore.model.spec import ModelSpec


@dataclass(frozen=True, slots=True)
class RangeInputs:
    """One range of some contributions.

    Attributes:
        range_: The range. Its dtype is that of `arrays`, which may be narrower than the tensors' (quantized codes).
        contributions: The contributions, for limits and errors.
        arrays: One array for each contribution. If the range is a whole segment in memory, it may be the list of the
            segment's tensors, which saves a copy into one array.
        coefficients: One for each contribution: cᵢ of a sum, or its weight for `Columns`.
        rest: The coefficient of one more contribution: `rest_values`. The kernels divide by the sum of the
            coefficients, and those of a `Geometry` or a `Chain` may add up to less than 1.
        rest_values: The elements of it, like an array of `arrays`. Default: None, zeros.
    """

    range_: SegmentRange
    contributions: Sequence[Contribution]
    arrays: Sequence[Any]
    coefficients: Sequence[float]
    rest: float = 0.0
    rest_values: Values | None = None

    def with_rest(self) -> tuple[Sequence[Any], Sequence[float]]:
        """Return arrays and coefficients, with those of the rest if it has a coefficient."""
        if not self.rest:
            return self.arrays, self.coefficients
        dtype, count, values = self.range_.dtype, self.range_.count, self.rest_values
        zeros = view_body(dtype, count, memoryview(bytes(body_bytes(dtype, count)))) if values is None else values
        return [*self.arrays, zeros], [*self.coefficients, self.rest]

    def columns(self, spec: ModelSpec) -> list[Values]:
        """Return each contribution's elements in the tensors' dtype."""
        return [tensor_values(spec, self.range_, array) for array in self.arrays]

    def with_columns(self, spec: ModelSpec, columns: Sequence[Values]) -> "RangeInputs":
        """Return these inputs with other elements, which are given in the tensors' dtype."""
        dtype = spec.segments[self.range_.segment].dtype
        arrays = [column.view(storage_dtype(dtype)) for column in columns]
        return replace(self, range_=replace(self.range_, dtype=dtype), arrays=arrays)
