"""The dtypes that can be folded, and how their bits are stored.

A row of `STORAGE` is derived from `flcore_layout.DTYPES`, and is all that the kernels need to know of a dtype.
`storage` is the NumPy dtype of the buffers. For floats, `magnitude_mask` cuts the sign off the bits and `infinity` is
the smallest bit pattern that is not finite, so that one integer maximum over the masked bits finds both the largest
magnitude and whether anything is not finite. `precision` (significant bits) and `lowest` (exponent of the smallest
step) say how a result is rounded.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from flcore_layout import DTYPES, Dtype

from flcore_kernels.errors import UnknownDType

EXACT_INTEGER_LIMIT = 2**53
"""The largest magnitude of an integer element: beyond it, float64 no longer holds every integer."""

QUANTIZED_BLOCKS = tuple(row.block for row in DTYPES.values() if row.is_quantized)
"""Elements that may share one scale in an int8-quantized operand."""


@dataclass(frozen=True)
class Storage:
    """One dtype's storage: `bits` is the unsigned dtype of the same width; `block` counts the elements of a scale."""

    storage: np.dtype[Any]
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
        """The largest magnitude that a sum takes of it."""
        if self.is_boolean:
            return 1.0
        return float(EXACT_INTEGER_LIMIT) if self.storage.kind in "iu" and self.storage.itemsize == 8 else np.inf

    @property
    def range(self) -> tuple[float, float]:
        """The smallest and the largest finite value, integers no further than `EXACT_INTEGER_LIMIT`."""
        if self.is_float:
            largest = (2.0 - 2.0 ** (1 - self.precision)) * 2.0 ** (2 - self.lowest - self.precision)
            return -largest, largest
        if self.is_boolean:
            return 0.0, 1.0
        info = np.iinfo(self.storage)
        return max(float(info.min), -(2.0**53)), min(float(info.max), 2.0**53)


def _storage(row: Dtype) -> Storage:
    storage = np.dtype(row.storage)
    bits = np.dtype(f"uint{8 * row.itemsize}")
    if not row.is_float:
        return Storage(storage, bits, block=row.block, is_boolean=row.is_boolean)
    exponent, mantissa = row.exponent_bits, row.mantissa_bits
    return Storage(
        storage,
        bits,
        magnitude_mask=(1 << (exponent + mantissa)) - 1,
        infinity=((1 << exponent) - 1) << mantissa,
        precision=mantissa + 1,
        lowest=2 - (1 << (exponent - 1)) - mantissa,
    )


STORAGE: dict[str, Storage] = {name: _storage(row) for name, row in DTYPES.items()}
"""Every dtype that the kernels fold, by its name. `int8[256]`: int8 codes, one float32 scale for each 256 of them.
A bool is the number 0 or 1."""


def storage_dtype(dtype: str) -> np.dtype[Any]:
    """Return the NumPy dtype of the buffers that hold `dtype`.

    >>> storage_dtype("bfloat16")
    dtype('uint16')
    """
    return lookup(dtype).storage


def lookup(dtype: str) -> Storage:
    """Return the row of `dtype`, or raise `UnknownDType`."""
    try:
        return STORAGE[dtype]
    except KeyError:
        raise UnknownDType(f"no kernel folds {dtype!r}; the dtypes are {', '.join(STORAGE)}") from None
