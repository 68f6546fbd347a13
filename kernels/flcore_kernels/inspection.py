"""What a look at a part's elements has found."""

from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import numpy.typing as npt

TILE = 4096
"""How many elements a sum of squares is of."""


@dataclass(frozen=True, eq=False)
class Inspection:
    """The first element that is not finite (-1: none), and figures of the others.

    `magnitude` is the largest magnitude of the finite elements, 0.0 for an empty part. `sums` are float64 sums of
    squares, one for each `TILE` elements.
    """

    first_bad: int
    magnitude: float
    sums: npt.NDArray[np.float64]

    @property
    def squares(self) -> Fraction | None:
        """The sum of squares: its tiles' added exactly, so that pieces that are cut at multiples of `TILE` add up to
        the same; None where an element is not finite or a tile's sum is too large for float64.
        """
        return exact_sum(self.sums) if self.first_bad < 0 and np.isfinite(self.sums).all() else None


def exact_sum(values: npt.NDArray[np.float64]) -> Fraction:
    """Return the sum of finite values, exactly: their integers are added, one exponent after the other.

    >>> exact_sum(np.array([1e300, 1.0, -1e300]))
    Fraction(1, 1)
    """
    mantissas, exponents = np.frexp(values)
    integers = (mantissas * 2.0**53).astype(np.int64)
    total = Fraction(0)
    for exponent in np.unique(exponents).tolist():
        chosen = integers[exponents == exponent]
        whole = (int((chosen >> 26).sum()) << 26) + int((chosen & (2**26 - 1)).sum())
        total += whole * Fraction(2) ** (exponent - 53)
    return total
