"""The dtypes that can be folded, and how their bits are stored.

A row is all that the rest of the kernels needs to know of a dtype. `storage` is the NumPy dtype of the buffers. For
floats, `magnitude_mask` cuts the sign off the bits and `infinity` is the smallest bit pattern that is not finite, so
that one integer maximum over the masked bits finds both the largest magnitude and whether anything is not finite.
`precision` (significant bits) and `lowest` (exponent of the smallest step) say how a result is rounded.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from flcore_kernels.errors import UnknownDType

EXACT_INTEGER_LIMIT = 2**53
"""The largest magnitude of an integer element: beyond it, float64 no longer holds every integer."""

QUANTIZED_BLOCKS = (32, 64, 128, 256)
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


def _float(storage: str, bits: str, exponent: int, mantissa: int) -> Storage:
    return Storage(
        np.dtype(storage),
        np.dtype(bits),
        magnitude_mask=(1 << (exponent + mantissa)) - 1,
        infinity=((1 << exponent) - 1) << mantissa,
        precision=mantissa + 1,
        lowest=2 - (1 << (exponent - 1)) - mantissa,
    )


def _integer(name: str) -> Storage:
    return Storage(np.dtype(name), np.dtype(name.lstrip("u").replace("int", "uint")))


STORAGE: dict[str, Storage] = {
    "float64": _float("float64", "uint64", 11, 52),
    "float32": _float("float32", "uint32", 8, 23),
    "float16": _float("uint16", "uint16", 5, 10),
    "bfloat16": _float("uint16", "uint16", 8, 7),
    **{name: _integer(name) for name in ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")},
    "bool": Storage(np.dtype(np.uint8), np.dtype(np.uint8), is_boolean=True),
    **{f"int8[{block}]": Storage(np.dtype(np.int8), np.dtype(np.uint8), block=block) for block in QUANTIZED_BLOCKS},
}
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
