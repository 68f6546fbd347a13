"""The oracle: the arithmetic of flcore in exact fractions, written to be read and not to be fast."""

from collections.abc import Sequence
from fractions import Fraction
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
import numpy.typing as npt

from flcore.model.chunks import GlobalModel

FLOATS: dict[str, np.dtype[Any]] = {
    "float64": np.dtype(np.float64),
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
}
INTEGERS: dict[str, np.dtype[Any]] = {
    name: np.dtype(name) for name in ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "bool")
}
DTYPES = FLOATS | INTEGERS
ORDERED = [*FLOATS, "int8", "uint32", "int64"]
"""Dtypes whose order is tested: keys of each size, of floats, of signed and of unsigned integers."""

PRECISION = {"float64": (53, -1074), "float32": (24, -149), "float16": (11, -24), "bfloat16": (8, -133)}
"""Significant bits, and the exponent of the smallest step."""

WIDTH, BLOCK = 48, 64
"""An exact sum's bins are this many bits wide, and this many elements share a level."""


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
    precision, lowest = PRECISION[dtype]
    return Fraction(2) ** (lowest if value == 0 else max(lowest, floor_log2(value) - precision + 1))


def stored(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return an array as the kernels store it: 16-bit floats as the uint16 of their bits, booleans as uint8."""
    is_half = values.dtype.itemsize == 2 and values.dtype.kind not in "iu"
    return values.view(np.uint16 if is_half else np.uint8 if values.dtype == np.bool_ else values.dtype)


def floor_log2(value: Fraction) -> int:
    """Return the largest e with 2^e <= |value|."""
    exponent = abs(value.numerator).bit_length() - value.denominator.bit_length()
    return exponent if abs(value) >= Fraction(2) ** exponent else exponent - 1


def rounded(value: Fraction, dtype: str) -> Fraction:
    """Return a value rounded to `dtype` once, ties to even, as if its range had no upper end."""
    step = ulp(value, dtype)
    return round(value / step) * step


class ExactState(NamedTuple):
    """What an exact total holds: a level per block (None: nothing but zeros), two digits per element."""

    levels: list[int | None]
    upper: list[int]
    lower: list[int]

    def totals(self) -> list[Fraction]:
        """Return the sum of each element."""
        scales = [Fraction(2) ** (WIDTH * ((self.levels[i // BLOCK] or 0) - 1)) for i in range(len(self.upper))]
        return [(u * 2**WIDTH + v) * scale for u, v, scale in zip(self.upper, self.lower, scales, strict=True)]


def level(terms: Sequence[Fraction]) -> int | None:
    """Return the smallest B with |t| <= 2^(48 (B + 1) - 1) for all terms."""
    largest = max(map(abs, terms), default=Fraction(0))
    if largest == 0:
        return None
    ceiling = floor_log2(largest)
    ceiling += largest != Fraction(2) ** ceiling
    return -((-ceiling - 1) // WIDTH) - 1


def exact_state(values: Sequence[npt.NDArray[np.float64]], weights: Sequence[float]) -> ExactState:
    """Return the exact sum of weighted values: each term's digits at its block's level and the bin below."""
    with np.errstate(under="ignore"):
        products = [np.float64(weight) * part for part, weight in zip(values, weights, strict=True)]
    terms = [[Fraction(float(term)) for term in product] for product in products]
    size = values[0].size if values else 0
    blocks = [range(start, min(start + BLOCK, size)) for start in range(0, size, BLOCK)]
    levels = [level([row[i] for row in terms for i in block]) for block in blocks]
    upper, lower = [0] * size, [0] * size
    for i in range(size):
        unit = Fraction(2) ** (WIDTH * (levels[i // BLOCK] or 0))
        for row in terms:
            digit = round(row[i] / unit)
            upper[i] += digit
            lower[i] += round((row[i] - digit * unit) / unit * 2**WIDTH)
    return ExactState(levels, upper, lower)


def exact_mean(
    values: Sequence[npt.NDArray[np.float64]], weights: Sequence[float], dtype: str
) -> npt.NDArray[np.float64]:
    """Return the mean of an exact sum, rounded once to `dtype`, as float64 (inf: too large for it); zero is +0."""
    weight = sum(map(Fraction, weights))
    found = [rounded(total / weight, dtype) for total in exact_state(values, weights).totals()]
    largest = Fraction(float(np.finfo(np.float64).max))
    return np.array([float(value) if abs(value) <= largest else np.inf for value in found], np.float64)


def dequantized(codes: npt.NDArray[np.int8], scales: npt.NDArray[np.float32], block: int) -> npt.NDArray[np.float32]:
    """Return the values of quantized elements, fl32(scale * code)."""
    values: npt.NDArray[np.float32] = np.repeat(scales, block)[: codes.size] * codes.astype(np.float32)
    return values


def _exact(value: Any) -> Fraction:
    return Fraction(int(value)) if isinstance(value, np.integer | np.bool_ | int) else Fraction(float(value))


def _closest(value: Fraction, candidates: Sequence[Any]) -> set[Any]:
    distances = {candidate: abs(_exact(candidate) - value) for candidate in candidates}
    best = min(distances.values())
    return {candidate for candidate, distance in distances.items() if distance == best}


def bits_of(model: GlobalModel) -> bytes:
    """Return every bit of a model, gaps included, wherever it is."""
    segments = enumerate(model.spec.segments)
    return b"".join(model.chunk(index, 0, segment.elements).tobytes() for index, segment in segments)


def sorted_mean(column: Sequence[Any], weights: Sequence[int], cut: Fraction) -> Fraction:
    """Return the mean of a column's values, after a weight has been cut from both ends. Weights are integers."""
    total, reached, found = sum(weights), 0, Fraction(0)
    for value, weight in sorted(zip(map(_exact, column), weights, strict=True)):
        counted = min(Fraction(reached + weight), total - cut) - max(Fraction(reached), cut)
        reached, found = reached + weight, found + max(counted, Fraction(0)) * value
    return found / (total - 2 * cut)


def weighted_median(column: Sequence[Any], weights: Sequence[int]) -> Fraction:
    """Return the smallest value at which half of the weight is reached, or the mean with the next one at a border."""
    values = sorted({_exact(value) for value, weight in zip(column, weights, strict=True) if weight})
    reached = [sum(w for v, w in zip(column, weights, strict=True) if _exact(v) <= value) for value in values]
    total = sum(weights)
    lower = next(value for value, weight in zip(values, reached, strict=True) if 2 * weight >= total)
    upper = next(value for value, weight in zip(values, reached, strict=True) if 2 * weight > total)
    return (lower + upper) / 2
