"""Order statistics of columns: the median, and means of some values of each element over all clients, on the CPU.

A result depends on the values and weights of its column alone: not on the order of the clients, on threads, or on which
elements are computed together. Their time grows with N · log² N for N clients, and does not depend on the values.

They have no CUDA twin yet, so they are functions, and not verbs of `Backend`.
"""

import math
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

import numpy as np

from flcore_kernels.backend import Array
from flcore_kernels.call_checks import require_result
from flcore_kernels.dtypes import lookup
from flcore_kernels.errors import BufferMismatch, TooManyTerms, WeightRange
from flcore_kernels.order_program import Program, median_program, sort_program
from flcore_kernels.rows import addresses_of, require_writable, sizes_of
from flcore_kernels.scratch import VECTOR_BYTES, scratch
from flcore_kernels.threads import shared_pool
from flcore_kernels.totals import MAX_TERMS

TILE_BYTES = 40 << 10
"""Bytes of a tile at most, with what is computed from it: most of a first-level cache of 48 KiB."""

BATCH_BYTES = 4 << 20
"""Bytes of all operands in a batch, the unit of work that threads take."""

WEIGHT_BITS = 30
"""The largest weight is scaled to between 2^29 and 2^30: a weight moves with a key of 32 bits."""


def median(
    operands: Sequence[Array],
    out: Array,
    dtype: str,
    *,
    weights: Sequence[float] | None = None,
    result: str | None = None,
    threads: int | None = None,
) -> None:
    """Write the median of each element over all operands to `out`.

    The median of an even number of values is the mean of the two in the middle, rounded once. The weighted median is
    the smallest value at which half of the weight is reached. If it is exactly half, the median is the mean of this
    value and the next larger one. Equal weights give the median without weights.

    Args:
        operands: One flat, contiguous array per client in the storage of `dtype`. Elements are finite: a NaN counts as
            beyond the infinity of its sign.
        out: A writable array with as many elements.
        dtype: The dtype of all operands; not a quantized one.
        weights: Finite and >= 0, and not all 0. They count as integers, with the largest one between 2^29 and 2^30, so
            one of less than 2^-30 of the largest one counts as if it were that. Default: None, all alike.
        result: The dtype of `out`. Default: `dtype`.
        threads: Threads at most. Default: `FLCORE_THREADS`, or else the cores that this process may use.

    Raises:
        BufferMismatch: An array has another size, dtype or place than expected.
        UnknownDType: There is no such dtype.
        WeightRange: A weight is invalid, or all are 0.
        TooManyTerms: There are no operands, or more than `MAX_TERMS`.
    """
    from flcore_kernels.cpu import order

    result = result or dtype
    scaled, operands = _counted(operands, weights)
    run = _prepared(operands, out, dtype, result, threads)
    if scaled is None:
        program, low, high = median_program(len(operands))
        run(order.median_kernel(dtype, result), program, (low, high), 1)
    else:
        program = sort_program(len(operands))
        run(order.weighted_median_kernel(dtype, result), program, (np.array(scaled), sum(scaled)), 2)


def trimmed_mean(
    operands: Sequence[Array],
    out: Array,
    dtype: str,
    *,
    trim: int,
    weights: Sequence[float] | None = None,
    result: str | None = None,
    threads: int | None = None,
) -> None:
    """Write the mean of each element without the `trim` smallest and the `trim` largest values to `out`.

    With weights, the share `trim` / N of the weight is cut from each side, rounded down to an integer on the scale of
    the weights. N is the number of operands with a weight above 0. A value on the border counts with what is left of
    its weight. Equal weights give the trimmed mean without weights. Sums are in float64, in the order of the values. A
    mean is not outside the values that count.

    Args:
        trim: The number of values to leave out on each side, less than half of the number of operands that count.
        operands, out, dtype, weights, result, threads: As for `median`.

    Raises:
        TooManyTerms: There are too few operands for `trim`, or more than `MAX_TERMS`.
        BufferMismatch, UnknownDType, WeightRange: As for `median`.
    """
    from flcore_kernels.cpu import order

    result = result or dtype
    scaled, operands = _counted(operands, weights)
    if not 0 <= 2 * trim < len(operands):
        raise TooManyTerms(f"trim is {trim}: expected {2 * trim + 1} operands or more that count, got {len(operands)}")
    run, program = _prepared(operands, out, dtype, result, threads), sort_program(len(operands))
    if scaled is None:
        run(order.trimmed_mean_kernel(dtype, result), program, (trim, len(operands) - trim), 1)
    else:
        cut = sum(scaled) * trim // len(scaled)
        limits = cut, sum(scaled) - cut
        run(order.weighted_trimmed_mean_kernel(dtype, result), program, (np.array(scaled), *limits), 2)


def mean_around_median(
    operands: Sequence[Array],
    out: Array,
    dtype: str,
    *,
    keep: int,
    result: str | None = None,
    threads: int | None = None,
) -> None:
    """Write the mean of the `keep` values of each element that are nearest to its median to `out`.

    Of two values that are equally near, the smaller one counts. Sums are in float64, in the order of the values. A mean
    is not outside the values that count.

    Args:
        keep: The number of values that count, at least 1 and at most that of the operands.
        operands, out, dtype, result, threads: As for `median`.

    Raises:
        TooManyTerms: There are fewer operands than `keep`, or more than `MAX_TERMS`.
        BufferMismatch, UnknownDType: As for `median`.
    """
    from flcore_kernels.cpu import order

    result, count = result or dtype, len(operands)
    if not 0 < keep <= count:
        raise TooManyTerms(f"keep is {keep}: expected a number between 1 and that of the operands, {count}")
    run, program = _prepared(operands, out, dtype, result, threads), sort_program(count)
    middle = (count - 1) // 2, count // 2
    run(order.mean_around_median_kernel(dtype, result), program, (*middle, count, keep), 1)


def integer_weights(weights: Sequence[float]) -> list[int]:
    """Return weights as integers: multiplied by a power of two, so that the largest one is 2^30 at most, and rounded.

    A weight above 0 becomes 1 at least, so the number of weights above 0 does not change.

    >>> integer_weights([3.0, 1.0, 0.0]) == [3 << 28, 1 << 28, 0]
    True
    """
    if not all(0 <= weight < math.inf for weight in weights):
        raise WeightRange(f"expected finite weights >= 0, got {list(weights)}")
    top = max(weights, default=0.0)
    if not top > 0:
        raise WeightRange("the sum of the weights is 0")
    scale = Fraction(2) ** (WEIGHT_BITS - math.frexp(top)[1])
    return [max(1, round(Fraction(weight) * scale)) if weight else 0 for weight in weights]


def _counted(operands: Sequence[Array], weights: Sequence[float] | None) -> tuple[list[int] | None, Sequence[Array]]:
    """Return the integer weights and the operands that count. Equal weights become None: no weights."""
    if weights is not None:
        if len(weights) != len(operands):
            raise BufferMismatch(f"expected one weight per operand, got {len(weights)} for {len(operands)}")
        scaled = integer_weights(weights)
        operands = [operand for operand, weight in zip(operands, scaled, strict=True) if weight]
        scaled = [weight for weight in scaled if weight]
        return (None if min(scaled) == max(scaled) else scaled), operands
    return None, operands


def _prepared(
    operands: Sequence[Array], out: Array, dtype: str, result: str, threads: int | None
) -> Callable[..., None]:
    """Check the arrays, and return `run(kernel, program, arguments, planes)`. `planes` is 2 with tags, or else 1."""
    storage = lookup(dtype)
    if storage.block:
        raise BufferMismatch(f"quantized operands ({dtype}) have no order statistics: decode them first")
    if not 0 < len(operands) <= MAX_TERMS:
        raise TooManyTerms(f"expected between 1 and {MAX_TERMS} operands, got {len(operands)}")
    require_result(result)
    sizes = sizes_of(out)
    ((target,), _) = addresses_of(out, lookup(result), sizes, "out")
    require_writable(out)
    addresses = np.array(
        [addresses_of(each, storage, sizes, f"operand {k}")[0][0] for k, each in enumerate(operands)], np.uint64
    )

    def run(kernel: Callable[..., Any], program: Program, arguments: tuple[Any, ...], planes: int) -> None:
        from flcore_kernels.cpu.sorted_tile import WORK_ROWS, key_bytes

        width = key_bytes(dtype, has_tags=planes == 2)
        tile = _tile_elements(program.rows * width * planes + 8 * WORK_ROWS, width)
        batch = max(1, BATCH_BYTES // (len(operands) * storage.dtype.itemsize * tile)) * tile
        shape = (program.steps, program.rows, program.first, tile)
        nbytes = tile * (program.rows * width * planes + 8 * WORK_ROWS)

        def work(number: int) -> None:
            first = number * batch
            kernel(addresses, first, min(sizes[0], first + batch), *shape, scratch(nbytes), *arguments, target)

        shared_pool(threads).run(work, -(-sizes[0] // batch))

    return run


def _tile_elements(bytes_per_element: int, key_bytes: int) -> int:
    """Return the elements of a tile: as many as `TILE_BYTES` hold, and at least one vector of keys."""
    lanes = VECTOR_BYTES // key_bytes
    return max(1, TILE_BYTES // (bytes_per_element * lanes)) * lanes
