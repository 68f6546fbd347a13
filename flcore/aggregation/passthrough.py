"""Elements that no mean is taken of: values that are not finite, and integers beyond 2^53, which float64 cannot hold.

Where all updates have the same such element, the result has it too, bit for bit: masks of -inf, hashes, sentinels.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from flcore_kernels import EXACT_INTEGER_LIMIT

Values = npt.NDArray[Any]
Mask = npt.NDArray[np.bool_]


def constants_in(values: Values) -> Mask:
    """Return which elements are no quantities; `values` are of the tensor's own dtype.

    >>> constants_in(np.array([1.0, -np.inf])).tolist(), constants_in(np.array([2**53, 2**53 + 1])).tolist()
    ([False, True], [False, True])
    """
    if values.dtype.kind in "iu":
        if values.dtype.itemsize < 8:
            return np.zeros(values.size, np.bool_)
        return (values > EXACT_INTEGER_LIMIT) | (values < -EXACT_INTEGER_LIMIT if values.dtype.kind == "i" else False)
    return ~np.isfinite(values)


def differing(values: Values, others: Values) -> Mask:
    """Return which elements do not have the same bits."""
    bits = f"u{values.dtype.itemsize}"
    different: Mask = values.view(bits) != others.view(bits)
    return different


def shared_constants(columns: Sequence[Values]) -> tuple[Mask, int]:
    """Return where all arrays have the same constant, and which array has one that others have not (-1: none has)."""
    masks = [constants_in(column) for column in columns]
    is_shared = masks[0].copy()
    for column in columns[1:]:
        is_shared &= ~differing(column, columns[0])
    return is_shared, next((index for index, mask in enumerate(masks) if (mask & ~is_shared).any()), -1)


def without(values: Values, mask: Mask) -> Values:
    """Return a copy with zeros where the mask is set."""
    copy = values.copy()
    copy[mask] = 0
    return copy
