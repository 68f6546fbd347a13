"""What an update's elements may be: finite, within bounds, and zero in the gaps between tensors."""

from typing import Any

import numpy as np
import numpy.typing as npt
from flcore_kernels import STORAGE, Backend, Quantized

from flcore.errors import NonFinite, OutOfBounds, TensorMismatch
from flcore.model.dtypes import DTYPES, INTEGERS
from flcore.model.narrow import Part, decoded
from flcore.model.spec import SegmentSpec

MANY_GAPS = 32

Values = npt.NDArray[Any]


def largest_allowed(dtype: str, max_abs: float) -> float:
    """Return the largest magnitude that an element may have: what a bound and its dtype allow.

    >>> largest_allowed("int64", 1e300), largest_allowed("bool", 1e300), largest_allowed("float32", 10.0)
    (9007199254740992.0, 1.0, 10.0)
    """
    return min(max_abs, max(map(abs, STORAGE[dtype].range))) if dtype in INTEGERS else max_abs


def check_values(
    backend: Backend, segment: SegmentSpec, dtype: str, first: int, part: Part, *, max_abs: float, client: str
) -> None:
    """Raise `NonFinite` or `OutOfBounds`, naming the tensor, unless a segment's elements from `first` on are sound.

    `dtype` is the one in which they came.
    """
    seen = backend.inspect(part, dtype)
    if seen.first_bad >= 0:
        tensor, element = segment.at(first + seen.first_bad)
        value = _values(part, dtype)[seen.first_bad]
        raise NonFinite(f"element {element} is {value}", client=client, tensor=tensor.name)
    limit = largest_allowed(dtype, max_abs)
    if seen.magnitude > limit:
        where = int(np.argmax(np.abs(_values(part, dtype).astype(np.float64))))
        tensor, element = segment.at(first + where)
        raise OutOfBounds(
            f"element {element} has magnitude {seen.magnitude:g}, more than the {limit:g} allowed",
            client=client,
            tensor=tensor.name,
        )


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


def _values(part: Part, dtype: str) -> Values:
    """Return a part's values, for a message."""
    if isinstance(part, Quantized):
        return decoded(dtype, part)
    return part if dtype in INTEGERS else part.view(DTYPES[dtype])
