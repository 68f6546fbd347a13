"""The oracle: the arithmetic of flcore in exact fractions, written to be read and not to be fast."""

from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

FLOATS: dict[str, np.dtype[Any]] = {
    "float64": np.dtype(np.float64),
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
}
INTEGERS: dict[str, np.dtype[Any]] = {
    name: np.dtype(name) for name in ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")
}
DTYPES = FLOATS | INTEGERS


def weighted_mean(parts: Sequence[npt.NDArray[Any]], weights: Sequence[float]) -> list[Fraction]:
    """Return the exact weighted mean of each element."""
    total = sum(Fraction(weight) for weight in weights)
    sums = [Fraction(0)] * parts[0].size
    for part, weight in zip(parts, weights, strict=True):
        for index, value in enumerate(part.reshape(-1)):
            sums[index] += Fraction(weight) * _exact(value)
    return [value / total for value in sums]


def nearest(value: Fraction, dtype: str) -> set[Any]:
    """Return the values of `dtype` nearest to an exact one: one, or two for a tie. None of them is beyond its range."""
    if dtype in INTEGERS:
        low = value.numerator // value.denominator
        return _closest(value, [low, low + 1])
    infinity = DTYPES[dtype].type(np.inf)
    with np.errstate(over="ignore", under="ignore"):
        start = np.array([float(value)], np.float64).astype(DTYPES[dtype])[0]
        around = [start, np.nextafter(start, -infinity), np.nextafter(start, infinity)]
    return _closest(value, [candidate for candidate in around if np.isfinite(np.float64(candidate))])


def ulp(value: Fraction, dtype: str) -> Fraction:
    """Return the distance between neighbours of `dtype` at a value."""
    if dtype in INTEGERS:
        return Fraction(1)
    bits, lowest = {"float64": (53, -1022), "float32": (24, -126), "float16": (11, -14), "bfloat16": (8, -126)}[dtype]
    exponent = lowest if value == 0 else max(lowest, int(np.frexp(float(abs(value)))[1]) - 1)
    return Fraction(2) ** (exponent - bits + 1)


def stored(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return an array as the kernels store it: 16-bit floats as the uint16 of their bits."""
    is_half = values.dtype.itemsize == 2 and values.dtype.kind not in "iu"
    return values.view(np.uint16) if is_half else values


def _exact(value: Any) -> Fraction:
    return Fraction(int(value)) if isinstance(value, np.integer) else Fraction(float(value))


def _closest(value: Fraction, candidates: Sequence[Any]) -> set[Any]:
    distances = {candidate: abs(_exact(candidate) - value) for candidate in candidates}
    best = min(distances.values())
    return {candidate for candidate, distance in distances.items() if distance == best}
