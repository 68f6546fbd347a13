"""Sums of numbers >= 0 that do not depend on their order, as the kernel of squared distances adds them.

A sum is three digits to the base 2^32. The place of its first digit is that of its largest term, and what a term has
below the third digit is cut off. Digits are added as integers, so a sum depends on which terms it has alone. A term
loses less than 2^-64 of the largest one.
"""

import math

import numpy as np
import numpy.typing as npt

Integers = npt.NDArray[np.int64]

DIGITS = 3
DIGIT_BITS = 32

LOWEST_PLACE = -30
"""The lowest place of a first digit, which counts multiples of 2^(32 · place): squares below 2^-1024 count as 0."""


class DigitSums:
    """Some sums, all 0 at first.

    Attributes:
        places: The place of each first digit; int64 of any shape.
        digits: The digits, on the axis before the last one.
    """

    def __init__(self, rows: int, columns: int) -> None:
        self.places: Integers = np.full((rows, columns), LOWEST_PLACE, np.int64)
        self.digits: Integers = np.zeros((rows, DIGITS, columns), np.int64)

    def add(self, places: Integers, digits: Integers) -> None:
        """Add other sums of the same shape."""
        higher = np.maximum(self.places, places)
        self.digits = _moved(self.digits, higher - self.places) + _moved(digits, higher - places)
        self.places = higher

    def values(self, chosen: npt.NDArray[np.bool_]) -> list[float]:
        """Return the chosen sums, each rounded once; infinite beyond float64's range."""
        digits = self.digits.transpose(0, 2, 1)[chosen].tolist()
        return [
            _scaled((first << 2 * DIGIT_BITS) + (second << DIGIT_BITS) + third, DIGIT_BITS * (place - 2))
            for place, (first, second, third) in zip(self.places[chosen].tolist(), digits, strict=True)
        ]


def _moved(digits: Integers, distances: Integers) -> Integers:
    """Return digits moved down by some places; those below the last place are cut off."""
    moved = digits.copy()
    for distance in range(1, DIGITS + 1):
        is_moved = distances == distance if distance < DIGITS else distances >= distance
        if is_moved.any():
            for place in range(DIGITS):
                source = digits[:, place - distance] if place >= distance else np.zeros_like(distances)
                moved[:, place] = np.where(is_moved, source, moved[:, place])
    return moved


def _scaled(whole: int, exponent: int) -> float:
    """Return whole · 2^exponent, rounded once.

    >>> _scaled(3, -1), _scaled((1 << 100) + 1, -100), _scaled(1, 2000)
    (1.5, 1.0, inf)
    """
    excess = max(0, whole.bit_length() - 64)
    if (
        excess
    ):  # the last bit is set if any bit that is cut off is: so the float is rounded as the whole number would be
        whole = (whole >> excess) | bool(whole & ((1 << excess) - 1))
    try:
        return math.ldexp(whole, exponent + excess)
    except OverflowError:
        return math.inf
