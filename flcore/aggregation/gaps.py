"""The gaps between tensors, which are zero."""

from typing import Any

import numpy as np
import numpy.typing as npt
from flcore_kernels import Quantized

from flcore.errors import TensorMismatch
from flcore.model.narrow import Part
from flcore.model.spec import SegmentSpec

MANY_GAPS = 32

Values = npt.NDArray[Any]


def check_gaps(segment: SegmentSpec, first: int, part: Part, *, client: str) -> None:
    """Raise `TensorMismatch` unless what lies between the tensors of a segment, from `first` on, is zero."""
    values = part.codes if isinstance(part, Quantized) else part
    bounds = segment.gaps(first, first + values.size)
    if len(bounds) > MANY_GAPS and not _any_in_gaps(values, bounds - first):
        return
    for begin, end in bounds.reshape(-1, 2).tolist():
        _check_gap(segment, values[begin - first : end - first], begin, client)


def _any_in_gaps(values: Values, bounds: npt.NDArray[np.int64]) -> bool:
    """Say whether anything but zeros is between `bounds`, beginnings and ends in turn; in one call for thousands."""
    bits = values.view(f"u{values.itemsize}")
    padded = bounds if bounds[-1] < bits.size else bounds[:-1]
    return bool(np.bitwise_or.reduceat(bits, padded)[::2].any())


def _check_gap(segment: SegmentSpec, gap: Values, position: int, client: str) -> None:
    if gap.any():
        tensor, _ = segment.at(position)
        raise TensorMismatch("the gap behind it is not zero", client=client, tensor=tensor.name)
