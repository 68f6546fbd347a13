"""Blocks of digits: what an exact total is made of, and what does not depend on a dtype.

Bin B counts multiples of 2^(48·B). A term t has a digit at every bin; of a block of 64 elements, the digits of its
*level* B (its top bin) and of the bin below are kept, an int64 each: 64 upper ones, then 64 lower ones. The level is
the smallest B with |t| ≤ 2^(48·(B+1) − 1) for all terms of the block, so that larger terms have no digit above it.
"""

from typing import Any

import numpy as np

from flcore_kernels.cpu import memory
from flcore_kernels.cpu.device_function import device_function

WIDTH = 48
BLOCK = 64
BLOCK_BYTES = 16 * BLOCK
EMPTY = -32768
"""The level of a block that has seen nothing but zeros."""

CEILING = 46
"""M is moved up by 2^46 units, so that bits(t + M) − bits(M) of |t| < 2^46 units shows in the lowest 47 bits alone: the
bitwise or of all terms' differences tells whether a block's level is what it was taken to be, or must be looked up."""
DIGITS_AHEAD = 16384
"""How far ahead a total's digits are fetched, a block at a time: more at once than memory takes would be waited for."""


@device_function
def power_of_two(exponent: Any) -> Any:
    """2^exponent in float64, for exponents from -1022 to 1023."""
    return memory.f64_of(np.int64(exponent + 1023) << np.int64(52))


@device_function
def level_of(term: Any) -> Any:
    """The smallest B with |term| ≤ 2^(48·(B+1) − 1); `EMPTY` for a zero."""
    bits = memory.f64_bits(term)
    if bits == np.int64(0):
        return np.int64(EMPTY)
    below = np.int64(0)
    if bits >> np.int64(52) == np.int64(0):  # not normal: a whole number of 2^-1074
        bits, below = memory.f64_bits(np.float64(bits)), np.int64(-1074)
    exponent = (bits >> np.int64(52)) - 1023 + below
    fraction = bits & np.int64(0xFFFFFFFFFFFFF)
    ceiling = exponent + (1 if fraction != np.int64(0) else 0)
    return (ceiling + WIDTH * 30) // WIDTH - 30


@device_function
def shift_of(level: Any) -> Any:
    """By how many bins float64 terms of a block are moved, so that M and its unit stay normal numbers."""
    if level > 18:
        return np.int64(-4)
    if level < -18:
        return np.int64(4)
    return np.int64(0)


@device_function
def bins_of(level: Any) -> Any:
    """(M, M, factor): M of a level's two bins, and the factor that brings terms there."""
    if level == EMPTY:
        level = np.int64(0)
    shift = shift_of(level)
    top = level + shift
    high = (1.5 * 2.0 ** (52 - CEILING) + 1.0) * power_of_two(CEILING + WIDTH * top)
    low = 1.5 * power_of_two(52 + WIDTH * (top - 1))
    return high, low, power_of_two(WIDTH * shift)


@device_function
def fetch_block(digits: Any) -> None:
    """Ask for the digits of a block of a total, some blocks ahead."""
    for i in range(0, BLOCK_BYTES, 64):
        memory.prefetch(digits + np.uint64(i + DIGITS_AHEAD))


@device_function
def stored_level(stored: Any, block: Any) -> Any:
    """The level that a total's block has; `EMPTY` where there is no total."""
    return np.int64(memory.load_i16(stored, block)) if stored != np.uint64(0) else np.int64(EMPTY)


@device_function
def begin_block(digits: Any, total: Any, held: Any, level: Any) -> None:
    """Set a block's digits to those of a total's block of level `held`, moved to `level`, which is not lower."""
    if held == EMPTY or level > held + 1:
        for i in range(2 * BLOCK):
            memory.store_i64(digits, i, np.int64(0))
    elif level == held:
        for i in range(2 * BLOCK):
            memory.store_i64(digits, i, memory.load_i64(total, i))
    else:
        for i in range(BLOCK):
            memory.store_i64(digits, i, np.int64(0))
            memory.store_i64(digits, BLOCK + i, memory.load_i64(total, i))


@device_function
def merge_block(digits: Any, level: Any, other: Any, other_level: Any) -> Any:
    """Add a block's digits to another's; returns the level that it has then."""
    if other_level == EMPTY:
        return level
    if other_level > level:
        for i in range(BLOCK):
            kept = memory.peek_i64(digits, i) if other_level == level + 1 else np.int64(0)
            memory.store_i64(digits, BLOCK + i, kept)
            memory.store_i64(digits, i, np.int64(0))
        level = other_level
    if other_level == level:
        for i in range(2 * BLOCK):
            memory.store_i64(digits, i, memory.peek_i64(digits, i) + memory.load_i64(other, i))
    elif other_level == level - 1:
        for i in range(BLOCK, 2 * BLOCK):
            memory.store_i64(digits, i, memory.peek_i64(digits, i) + memory.load_i64(other, i - BLOCK))
    return level
