"""What a device must offer."""

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt


class Inspection(NamedTuple):
    """What `Backend.inspect` saw: the index of the first non-finite element (-1: none), and the largest magnitude.

    The magnitude is that of the finite elements, 0.0 for an empty part.
    """

    first_bad: int
    magnitude: float


class Backend(Protocol):
    """The verbs of aggregation on one device.

    Every buffer is one-dimensional and contiguous; a part may be read-only. `dtype` names what the parts hold (a key of
    `STORAGE`). Functions raise `BufferMismatch` for buffers that do not fit, and never change a part.
    """

    def fold(
        self, total: npt.NDArray[np.float64], parts: Sequence[npt.NDArray[Any]], weights: Sequence[float], dtype: str
    ) -> None:
        """Add `Σ weightᵢ · partᵢ` to `total`, one part after the other in the order given.

        Each term is `fl64(weight · x)`, each sum is rounded to float64; nothing is widened into a temporary.
        """
        ...

    def finish(
        self,
        total: npt.NDArray[np.float64],
        weight_sum: float,
        out: npt.NDArray[Any],
        dtype: str,
        base: npt.NDArray[Any] | None = None,
    ) -> int:
        """Write `base + total / weight_sum` to `out`, rounded once from float64 to `dtype`, ties to even.

        Without `base` (a buffer of the same dtype), the mean itself. Returns the index of the first element that
        `dtype` cannot hold (a float that overflowed, an integer out of range), or -1; `out` is then not to be used.
        """
        ...

    def inspect(self, part: npt.NDArray[Any], dtype: str) -> Inspection:
        """Find the first non-finite element and the largest magnitude, in one pass where all is finite."""
        ...
