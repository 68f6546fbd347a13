"""Where results are written, and the exact fallback for quotients that float64 cannot decide (see `cpu.quotient`)."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from flcore_kernels import weights
from flcore_kernels.backend import Operand
from flcore_kernels.call_checks import divisor_of, require_result
from flcore_kernels.cpu import kernels
from flcore_kernels.dtypes import lookup
from flcore_kernels.rows import Rows, address_of, addresses_of, require_writable
from flcore_kernels.totals import BLOCK, Total

PAST_CACHE_BYTES = 4 << 20
"""Larger results are written with non-temporal stores: in the cache they would displace operands, and be displaced
themselves before anything reads them."""


@dataclass(frozen=True)
class Target:
    """Where the rows of a result are written, the rows of the base (address 0: none), and the sum of weights.

    `weight` is the exact sum in units of 2^-1074; `divisor` + `rest` are the two float64 next to it.
    """

    dtype: str
    targets: npt.NDArray[np.uint64]
    bases: npt.NDArray[np.uint64]
    weight: int
    divisor: float
    rest: float
    past_cache: bool

    @classmethod
    def of(
        cls, rows: Rows, out: Operand, base: Operand | None, dtype: str, sizes: Sequence[int], total: Total
    ) -> "Target":
        """Return the target of the rows' results, or raise `BufferMismatch` or `WeightRange`."""
        storage = require_result(dtype)
        targets = rows.table([addresses_of(out, storage, sizes, "out")[0]], storage.dtype.itemsize)[:, 0]
        require_writable(out)
        bases = np.zeros_like(targets)
        if base is not None:
            bases = rows.table([addresses_of(base, storage, sizes, "base")[0]], storage.dtype.itemsize)[:, 0]
        divisor, rest = divisor_of(total)
        large = sum(sizes) * storage.dtype.itemsize > PAST_CACHE_BYTES
        return cls(dtype, targets.copy(), bases.copy(), total.weight, divisor, rest, large)

    @property
    def arguments(self) -> tuple[Any, ...]:
        """The arguments of a kernel, in its order."""
        return self.targets, self.bases, self.divisor, self.rest, int(self.past_cache)


def write_unresolved(
    total: Total,
    blocks: npt.NDArray[np.int64],
    rows: Rows,
    unresolved: npt.NDArray[np.int64],
    target: Target,
) -> int:
    """Write results by long division: of block `blocks[i]` of the total, to the rows from element `unresolved[i]` on.

    The two differ if the total holds unresolved blocks only. Returns the first element that does not fit, or -1.
    """
    size = lookup(target.dtype).dtype.itemsize
    where = np.searchsorted(rows.starts, unresolved, side="right") - 1
    along = unresolved - rows.starts[where]
    counts = np.minimum(BLOCK, rows.counts[where] - along)
    bytes_along = (along * size).astype(np.uint64)
    bases = target.bases[where]
    limbs, exponent = weights.as_limbs(target.weight)
    bad = kernels.exact_fallback_kernel(target.dtype)(
        *(np.uint64(address_of(total.values)), np.uint64(address_of(total.levels)), blocks, counts),
        *(target.targets[where] + bytes_along, np.where(bases, bases + bytes_along, bases), limbs, exponent),
    )
    return -1 if bad < 0 else int(unresolved[np.searchsorted(blocks, bad // BLOCK)] + bad % BLOCK)


def first_of(bad: Iterable[int]) -> int:
    """Return the smallest index that is not negative, or -1."""
    return min((index for index in bad if index >= 0), default=-1)
