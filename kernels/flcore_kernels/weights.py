"""Weights: which are valid, their exact sum, and the scale on which a float sum takes them."""

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt

from flcore_kernels.errors import WeightRange

EXACT_RANGE = (2.0**-64, 2.0**64)
"""The smallest and the largest weight, other than 0, of an exact total: [2^-64, 2^64].

The bounds keep float32 terms within float64's normal numbers, and 65,535 weights within an integer of 196 bits."""

UNIT = 1074
"""Sums of weights are Python integers in units of 2^-1074. Every float64 is a multiple of it, so they are exact."""


def checked(weights: Sequence[float], accumulate: str) -> npt.NDArray[np.float64]:
    """Return weights as float64, or raise `WeightRange` unless they are finite, >= 0, and for `exact` in its range."""
    values = np.array(weights, np.float64).reshape(-1)
    good = np.isfinite(values) & (values >= 0)
    expected = "a finite number >= 0"
    if accumulate == "exact":
        low, high = EXACT_RANGE
        good &= (values == 0) | ((values >= low) & (values <= high))
        expected = "0 or a number between 2^-64 and 2^64, for an exact total"
    if not good.all():
        index = int(np.argmin(good))
        raise WeightRange(f"weight {index} is {values[index]}; expected {expected}")
    return values


def exact_sum(weights: npt.NDArray[np.float64]) -> int:
    """Return the sum of weights, in units of 2^-1074, exactly.

    >>> exact_sum(np.array([0.5, 1.0])) == 3 << 1073
    True
    """
    total = 0
    for weight in weights.tolist():
        numerator, denominator = weight.as_integer_ratio()
        total += numerator << (UNIT - denominator.bit_length() + 1)
    return total


def as_float_pair(units: int) -> tuple[float, float]:
    """Return a sum of weights as a float64 and a rest: the nearest float64, and the nearest float64 to the difference.

    >>> as_float_pair(3 << 1073)
    (1.5, 0.0)
    """
    value = Fraction(units, 1 << UNIT)
    try:
        nearest = float(value)
    except OverflowError:
        raise WeightRange("the sum of the weights is too large for a float64") from None
    return nearest, float(value - Fraction(nearest))


def as_limbs(units: int) -> tuple[npt.NDArray[np.uint64], int]:
    """Return a sum of weights as four 64-bit limbs, lowest first, and the exponent of two that they are multiplied by.

    Only an exact sum is divided by limbs. Its odd part has at most 196 bits (see `cpu.long_division`).
    """
    zeros = (units & -units).bit_length() - 1
    odd = units >> zeros
    return np.array([(odd >> shift) & (2**64 - 1) for shift in range(0, 256, 64)], np.uint64), zeros - UNIT


def scale_of(weights: npt.NDArray[np.float64]) -> int:
    """Return the exponent of the largest weight: weights divided by 2^exponent are below 2.

    Dividing by a power of two changes no digit, and keeps products of huge or tiny weights in the range of float32.
    """
    largest = float(weights.max(initial=0.0))
    return math.frexp(largest)[1] - 1 if largest > 0 else 0


def scaled(weights: npt.NDArray[np.float64], exponent: int, accumulate: str) -> npt.NDArray[np.float64]:
    """Return weights · 2^-exponent, rounded to the accumulator's dtype, as float64.

    The sum of weights is that of the rounded weights: otherwise the mean of equal operands would differ from them.
    Raises `WeightRange` if a weight leaves the accumulator's range.
    """
    with np.errstate(over="ignore", under="ignore"):
        values: npt.NDArray[Any] = np.ldexp(weights, -exponent).astype(accumulate).astype(np.float64)
    if not np.isfinite(values).all():
        index = int(np.argmin(np.isfinite(values)))
        raise WeightRange(f"weight {index} is {weights[index]}: too large for the scale of this total, 2^{exponent}")
    return values
