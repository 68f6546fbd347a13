"""The kernel of squared distances: reads each operand once, block by block, and adds to the sums of all pairs.

A block of all operands lies in the first or second level of the cache, as rows in float32 or float64. Rows are in
groups of 4; for each pair of groups that is asked for, `row_pairs` computes 16 sums at once.

Blocks begin at fixed elements, and are added as digits (see `digit_sums`): so a sum does not depend on ranges, threads
or the order of the blocks.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from numba import types

from flcore_kernels.cpu import memory
from flcore_kernels.cpu.compiler import Kernel
from flcore_kernels.cpu.decode import DECODERS, STEP
from flcore_kernels.cpu.device_function import device_function
from flcore_kernels.cpu.row_pairs import BLOCK, GROUP, PAIRS, add_digits, outside, pair_sums
from flcore_kernels.digit_sums import DIGIT_BITS, DIGITS

MAX_BLOCKS = 1 << 20
"""Blocks of one call: digits are added as float64, exactly up to 2^53."""

_U64, _I64, _F64 = types.uint64, types.int64, types.float64
_ADDRESSES, _PLACES = types.Array(_U64, 1, "C"), types.Array(_I64, 2, "C")
_NUMBERS, _REALS = types.Array(_I64, 1, "C"), types.Array(_F64, 1, "C")


def row_bits(dtype: str) -> int:
    """Return the bits of an element of a row: 32, or 64 for float64."""
    return 64 if dtype == "float64" else 32


@cache
def distances_kernel(dtype: str) -> Kernel:
    """Return the kernel for operands of a float dtype. It returns the first block with a sum that is not
    finite, or -1."""
    signature = _I64(
        *(_ADDRESSES, _NUMBERS, _I64, _I64, _I64),  # operands, their rows, elements, the first block and the last
        *(_U64, _I64),  # the address of the rows, and the number of groups
        *(_PLACES, _NUMBERS),  # pairs of groups, and a mask of 16 bits for each: the pairs that count
        *(_REALS, _REALS, _NUMBERS),  # scales, digits and places of the sums
    )
    return Kernel(f"distances-{dtype}", signature, lambda: _distances(dtype))


def _distances(dtype: str) -> Callable[..., Any]:
    bits, size = row_bits(dtype), DECODERS[dtype].bytes
    is_narrow = bits == 32
    row_bytes, group_bytes = np.uint64(BLOCK * bits // 8), np.uint64(GROUP * BLOCK * bits // 8)
    sums, fill, exact = pair_sums(bits), _filling(dtype), _in_float64(bits)
    # Below, float32 may have lost a square to underflow: 256 · 2^-150 is 2^-24 of 2^-118. Above, it may be infinite.
    low, high = (2.0**-117, 2.0**127) if is_narrow else (0.0, np.finfo(np.float64).max)

    def run(operands, places, elements, first, last, rows, groups, pairs, counting, scales, digits, tops):  # type: ignore[no-untyped-def]
        values = np.zeros(PAIRS)
        value_address = np.uint64(values.ctypes.data)
        scale_address, digit_address = np.uint64(scales.ctypes.data), np.uint64(digits.ctypes.data)
        step, failed = np.uint64(8 * PAIRS), -1
        for i in range(groups * GROUP * BLOCK * bits // 32):  # rows without an operand stay zeros
            memory.put_i32(rows, i, np.int32(0))
        for block in range(first, last):
            count = min(BLOCK, elements - block * BLOCK)
            for k in range(operands.size):
                fill(operands[k] + np.uint64(block * BLOCK * size), count, rows + np.uint64(places[k]) * row_bytes)
            next_one = np.uint64(min(block + 1, last - 1) * BLOCK * size)
            for p in range(pairs.shape[0]):
                # The next block comes into the cache while this one is computed, some operands with each pair.
                for k in range(p * operands.size // pairs.shape[0], (p + 1) * operands.size // pairs.shape[0]):
                    for line in range(0, BLOCK * size, 64):
                        memory.prefetch(operands[k] + next_one + np.uint64(line))
                left = rows + np.uint64(pairs[p, 0]) * group_bytes
                right = rows + np.uint64(pairs[p, 1]) * group_bytes
                scale = scale_address + np.uint64(p) * step
                sums(left, right, value_address)
                odd = outside(value_address, scale, low, high) & counting[p]
                if odd:
                    for q in range(PAIRS):
                        if (odd >> q) & 1:
                            if is_narrow and not low <= values[q] <= high:
                                here = left + np.uint64(q // GROUP) * row_bytes
                                values[q] = exact(here, right + np.uint64(q % GROUP) * row_bytes)
                            if not values[q] <= np.finfo(np.float64).max:
                                failed = block if failed < 0 else failed
                                values[q] = 0.0
                            raise_top(values[q], p * PAIRS + q, p, q, scales, digits, tops)
                add_digits(value_address, scale, digit_address + np.uint64(DIGITS * p) * step, step)
        return failed

    return run


@device_function
def raise_top(value: Any, index: Any, p: Any, q: Any, scales: Any, digits: Any, tops: Any) -> None:
    """Move a sum's digits down, so that the first one can hold a value."""
    while value * scales[index] >= 2.0**DIGIT_BITS:
        scales[index] *= 2.0**-DIGIT_BITS
        tops[index] += 1
        start = DIGITS * p * PAIRS + q
        digits[start + 2 * PAIRS] = digits[start + PAIRS]
        digits[start + PAIRS] = digits[start]
        digits[start] = 0.0


def _filling(dtype: str) -> Any:
    """Return the function that writes elements to a row, and zeros behind them."""
    value, is_double = DECODERS[dtype].value, row_bits(dtype) == 64

    @device_function
    def fill(source: Any, count: Any, row: Any) -> None:
        for start in range(0, count, STEP):
            for i in range(start, min(start + STEP, count)):
                if is_double:
                    memory.store_f64(row, i, value(source, np.float32(1.0), i))
                else:
                    memory.store_f32(row, i, value(source, np.float32(1.0), i))
        for i in range(count, BLOCK):
            if is_double:
                memory.store_f64(row, i, 0.0)
            else:
                memory.store_f32(row, i, np.float32(0.0))

    return fill


def _in_float64(bits: int) -> Any:
    """Return the function that sums the squared differences of two rows in float64."""
    load = memory.peek_f32 if bits == 32 else memory.peek_f64

    @device_function
    def exact(row: Any, other: Any) -> Any:
        total = 0.0
        for i in range(BLOCK):
            difference = np.float64(load(row, i)) - np.float64(load(other, i))
            total += difference * difference
        return total

    return exact
