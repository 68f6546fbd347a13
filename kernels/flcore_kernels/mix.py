"""Weighted combinations of operands: all sums in one pass over the operands, on the CPU."""

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from flcore_kernels.backend import Array
from flcore_kernels.dtypes import lookup
from flcore_kernels.errors import BufferMismatch, TooManyTerms
from flcore_kernels.rows import addresses_of, require_writable, sizes_of
from flcore_kernels.scratch import scratch
from flcore_kernels.threads import shared_pool
from flcore_kernels.totals import MAX_TERMS

ROUNDING = 1e-12
"""What the shares of a mean may differ from 1."""

BATCH_BYTES = 2 << 20
"""Bytes of all operands in a batch, the unit of work that threads take."""


def mix(
    operands: Sequence[Array],
    shares: npt.NDArray[np.float64],
    outs: Sequence[Array],
    dtype: str,
    *,
    threads: int | None = None,
) -> None:
    """Write outₘ = Σₙ sharesₘₙ · operandₙ for each m.

    Sums are in float64, in the order of the operands, and rounded once to the dtype of the results. If the shares of a
    row are >= 0 and add up to 1, but for rounding, the sum is a mean, and is not outside the operands' values. If they
    add up to less than 1, it is not outside these and zero.

    Args:
        operands: N flat, contiguous arrays in the storage of `dtype`. Elements are finite.
        shares: M × N finite numbers.
        outs: M writable arrays with as many elements, all float32 or all float64.
        dtype: The dtype of all operands; not a quantized one.
        threads: Threads at most. Default: `FLCORE_THREADS`, or else the cores that this process may use.

    Raises:
        BufferMismatch: An array has another size, dtype or place than expected.
        TooManyTerms: There are no operands, or more than `MAX_TERMS`.

    Example:
        >>> import numpy as np
        >>> out = np.empty(2, np.float32)
        >>> mix([np.array([1, 2], np.float32), np.array([3, 6], np.float32)], np.array([[0.5, 0.5]]), [out], "float32")
        >>> out.tolist()
        [2.0, 4.0]
    """
    from flcore_kernels.cpu.mix import SUMS, TILE, mix_kernel, scratch_bytes

    storage = lookup(dtype)
    if storage.block:
        raise BufferMismatch(f"quantized operands ({dtype}) cannot be mixed: decode them first")
    if not 0 < len(operands) <= MAX_TERMS:
        raise TooManyTerms(f"expected between 1 and {MAX_TERMS} operands, got {len(operands)}")
    if shares.shape != (len(outs), len(operands)) or not np.isfinite(shares).all():
        raise BufferMismatch(
            f"shares: expected finite numbers of shape {(len(outs), len(operands))}, got shape {shares.shape}"
        )
    if not outs:
        return
    result, sizes = outs[0].dtype.name, sizes_of(operands[0])
    if result not in ("float32", "float64"):
        raise BufferMismatch(f"out: expected float32 or float64, got {result}")
    sources = [addresses_of(each, storage, sizes, f"operand {k}")[0][0] for k, each in enumerate(operands)]
    targets = [addresses_of(each, lookup(result), sizes, f"out {k}")[0][0] for k, each in enumerate(outs)]
    for out in outs:
        require_writable(out)
    padded = np.zeros((-(-len(outs) // SUMS) * SUMS, len(operands)))
    padded[: len(outs)] = shares
    means = np.array([_is_mean(row) for row in shares], np.int64)
    kernel, tiles = mix_kernel(dtype, result), -(-sizes[0] // TILE)
    batch = max(1, BATCH_BYTES // (len(operands) * TILE * storage.dtype.itemsize))
    found, written = np.array(sources, np.uint64), np.array(targets, np.uint64)

    def work(number: int) -> None:
        first = number * batch
        rows = scratch(scratch_bytes(len(operands)))
        kernel(found, written, padded, means, sizes[0], first, min(tiles, first + batch), rows)

    shared_pool(threads).run(work, -(-tiles // batch))


def _is_mean(shares: npt.NDArray[np.float64]) -> int:
    """Return 1 for shares of a mean, 2 for those of a mean with zeros, and 0 for others."""
    left = 1 - math.fsum(shares)
    if (shares < 0).any() or left < -ROUNDING:
        return 0
    return 1 if left <= ROUNDING else 2
