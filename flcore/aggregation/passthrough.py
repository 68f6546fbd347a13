"""Passthrough elements: those without a mean, which a result has bit for bit or not at all.

They are values that are not finite (masks of -inf, NaN) and integers beyond 2^53 (hashes, sentinels), which float64
cannot hold. Where all updates have the same one, the result has it too. Elsewhere the update that differs is refused.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from flcore_kernels import EXACT_INTEGER_LIMIT

from flcore.model.dtypes import INTEGERS

Values = npt.NDArray[Any]
Mask = npt.NDArray[np.bool_]


def passthrough_mask(values: Values) -> Mask:
    """Return which elements have no mean. `values` are of the tensor's dtype.

    >>> passthrough_mask(np.array([1.0, -np.inf])).tolist(), passthrough_mask(np.array([2**53, 2**53 + 1])).tolist()
    ([False, True], [False, True])
    """
    if values.dtype.kind in "iu":
        if values.dtype.itemsize < 8:
            return np.zeros(values.size, np.bool_)
        return (values > EXACT_INTEGER_LIMIT) | (values < -EXACT_INTEGER_LIMIT if values.dtype.kind == "i" else False)
    return ~np.isfinite(values)


def is_free_of_passthrough(dtype: str, magnitude: float) -> bool:
    """Return whether the largest magnitude, rounded to float64, proves that all elements have a mean.

    False may be wrong for integers: 2^53 has a mean, and 2^53 + 1 has the same float64.
    """
    return magnitude < EXACT_INTEGER_LIMIT if dtype in INTEGERS else magnitude < float("inf")


def differing_bits(values: Values, others: Values) -> Mask:
    """Return which elements do not have the same bits."""
    bits = f"u{values.dtype.itemsize}"
    different: Mask = values.view(bits) != others.view(bits)
    return different


def shared_passthrough(columns: Sequence[Values]) -> tuple[Mask, int]:
    """Return where all columns have the same passthrough element, and the first column with another one (-1: none)."""
    masks = [passthrough_mask(column) for column in columns]
    is_shared = masks[0].copy()
    for column in columns[1:]:
        is_shared &= ~differing_bits(column, columns[0])
    return is_shared, next((index for index, mask in enumerate(masks) if (mask & ~is_shared).any()), -1)


def zero_where(values: Values, mask: Mask) -> Values:
    """Return a copy with zeros where the mask is set."""
    copy = values.copy()
    copy[mask] = 0
    return copy
