"""The dtypes that kernels fold, and how their bits are stored: `STORAGE`, a table made from `flcore_layout.DTYPES`."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from flcore_layout import DTYPES, Dtype

from flcore_kernels.errors import UnknownDType

EXACT_INTEGER_LIMIT = 2**53
"""The largest magnitude of an integer element, 2^53: beyond it, float64 does not hold every integer."""

QUANTIZED_BLOCKS = tuple(row.block for row in DTYPES.values() if row.is_quantized)
"""The block sizes of quantized dtypes: elements that share one scale."""


@dataclass(frozen=True)
class Storage:
    """How one dtype is stored and rounded.

    Attributes:
        dtype: The NumPy dtype of buffers.
        bits: The unsigned NumPy dtype of the same width.
        magnitude_mask: For floats, all bits but the sign.
        infinity: For floats, the smallest masked bits of a number that is not finite. One integer maximum over masked
            bits gives the largest magnitude, and shows whether an element is not finite.
        precision: Significant bits of a result.
        lowest: Exponent of a result's finest step: a float's smallest denormal is 2^lowest.
        block: For quantized dtypes, the elements that share a scale; else 0.
        is_boolean: Whether elements are 0 and 1 only.
    """

    dtype: np.dtype[Any]
    bits: np.dtype[Any]
    magnitude_mask: int = 0
    infinity: int = 0
    precision: int = 64
    lowest: int = 0
    block: int = 0
    is_boolean: bool = False

    @property
    def is_float(self) -> bool:
        """Whether the dtype can hold a NaN or an infinity."""
        return self.infinity > 0

    @property
    def limit(self) -> float:
        """The largest magnitude of an element that a sum takes; infinite if it takes every finite one."""
        if self.is_boolean:
            return 1.0
        return float(EXACT_INTEGER_LIMIT) if self.dtype.kind in "iu" and self.dtype.itemsize == 8 else np.inf

    @property
    def range(self) -> tuple[float, float]:
        """The smallest and the largest finite value; of integers, within ±`EXACT_INTEGER_LIMIT`."""
        if self.is_float:
            largest = (2.0 - 2.0 ** (1 - self.precision)) * 2.0 ** (2 - self.lowest - self.precision)
            return -largest, largest
        if self.is_boolean:
            return 0.0, 1.0
        info = np.iinfo(self.dtype)
        return max(float(info.min), -(2.0**53)), min(float(info.max), 2.0**53)


def _storage(row: Dtype) -> Storage:
    dtype = np.dtype(row.storage)
    bits = np.dtype(f"uint{8 * row.itemsize}")
    if not row.is_float:
        return Storage(dtype, bits, block=row.block, is_boolean=row.is_boolean)
    exponent, mantissa = row.exponent_bits, row.mantissa_bits
    return Storage(
        dtype,
        bits,
        magnitude_mask=(1 << (exponent + mantissa)) - 1,
        infinity=((1 << exponent) - 1) << mantissa,
        precision=mantissa + 1,
        lowest=2 - (1 << (exponent - 1)) - mantissa,
    )


STORAGE: dict[str, Storage] = {name: _storage(row) for name, row in DTYPES.items()}
"""Every dtype that kernels fold, by its name. `int8[256]`: int8 codes, with one float32 scale per 256 of them. A bool
is the number 0 or 1."""


def storage_dtype(dtype: str) -> np.dtype[Any]:
    """Return the NumPy dtype of the buffers that hold `dtype`.

    Args:
        dtype: A key of `STORAGE`.

    Raises:
        UnknownDType: No kernel folds `dtype`.

    Example:
        >>> storage_dtype("bfloat16")
        dtype('uint16')
    """
    return lookup(dtype).dtype


def lookup(dtype: str) -> Storage:
    """Return the storage of `dtype`, or raise `UnknownDType`."""
    try:
        return STORAGE[dtype]
    except KeyError:
        raise UnknownDType(f"no kernel folds {dtype!r}; the dtypes are {', '.join(STORAGE)}") from None
