"""The CPU backend: checks and drives the loops of `cpu_loops`.

A driver walks its buffers in blocks that fit the first-level cache together with their total, so that K parts are
folded in one pass over memory: the total of a block stays in cache while the K parts stream through it.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from flcore_kernels import cpu_loops
from flcore_kernels.backend import Inspection
from flcore_kernels.dtypes import EXACT_INTEGER_LIMIT, lookup
from flcore_kernels.errors import BufferMismatch

BLOCK = 16_384
"""Elements of a block: 128 KiB of float64 total, which stays in the second-level cache."""


def fold(
    total: npt.NDArray[np.float64], parts: Sequence[npt.NDArray[Any]], weights: Sequence[float], dtype: str
) -> None:
    """Add `Σ weightᵢ · partᵢ` to `total` (see `Backend.fold`)."""
    row = lookup(dtype)
    if len(parts) != len(weights):
        raise BufferMismatch(f"fold takes one weight a part: {len(parts)} parts came with {len(weights)} weights")
    _check(total, np.dtype(np.float64), total.size, "total")
    for index, part in enumerate(parts):
        _check(part, row.storage, total.size, f"part {index}")
    add = cpu_loops.ADD[dtype]
    for start in range(0, total.size, BLOCK):
        stop = start + BLOCK
        for part, weight in zip(parts, weights, strict=True):
            add(total[start:stop], part[start:stop], float(weight))


def finish(
    total: npt.NDArray[np.float64],
    weight_sum: float,
    out: npt.NDArray[Any],
    dtype: str,
    base: npt.NDArray[Any] | None = None,
) -> int:
    """Write `base + total / weight_sum` to `out`, rounded once to `dtype` (see `Backend.finish`)."""
    row = lookup(dtype)
    _check(total, np.dtype(np.float64), total.size, "total")
    _check(out, row.storage, total.size, "out")
    if base is not None:
        _check(base, row.storage, total.size, "base")
    if not weight_sum > 0:
        raise BufferMismatch(f"the sum of weights must be > 0 to divide by it; it is {weight_sum}")
    return int(cpu_loops.DIVIDE[dtype](total, float(weight_sum), out, out if base is None else base, base is not None))


def inspect(part: npt.NDArray[Any], dtype: str) -> Inspection:
    """Find the first non-finite element and the largest magnitude (see `Backend.inspect`)."""
    row = lookup(dtype)
    _check(part, row.storage, part.size, "part")
    if not row.is_float:
        low, high = cpu_loops.extremes(part)
        return Inspection(-1, float(max(-int(low), int(high))))
    bits = part.view(row.bits)
    top = int(cpu_loops.largest(bits, row.bits.type(row.magnitude_mask)))
    if top < row.infinity:
        return Inspection(-1, _magnitude(top, dtype))
    infinity = row.bits.type(row.infinity)
    return Inspection(
        int(cpu_loops.first_at_least(bits, row.bits.type(row.magnitude_mask), infinity)),
        _magnitude(int(cpu_loops.largest_below(bits, row.bits.type(row.magnitude_mask), infinity)), dtype),
    )


def _magnitude(bits: int, dtype: str) -> float:
    """Return the value of one element's bits."""
    one = np.zeros(1)
    cpu_loops.ADD[dtype](one, np.array([bits], lookup(dtype).bits).view(lookup(dtype).storage), 1.0)
    return float(one[0])


def _check(buffer: npt.NDArray[Any], dtype: np.dtype[Any], size: int, what: str) -> None:
    if buffer.dtype != dtype or buffer.ndim != 1 or buffer.size != size or not buffer.flags.c_contiguous:
        contiguous = "contiguous" if buffer.flags.c_contiguous else "strided"
        raise BufferMismatch(
            f"{what}: expected a contiguous buffer of {size} {dtype}, got {contiguous} {buffer.dtype} of shape "
            f"{buffer.shape}"
        )


__all__ = ["EXACT_INTEGER_LIMIT", "finish", "fold", "inspect"]
