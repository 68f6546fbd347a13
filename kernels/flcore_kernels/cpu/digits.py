"""Blocks of digits: the state of an exact total, independent of dtypes.

Bin B counts multiples of its *unit*, 2^(48·B). A term t has an integer digit in every bin. The *level* of a block of 64
elements is the smallest B with |t| ≤ 2^(48·(B+1) − 1) for all its terms, so no term has a digit above bin B. A block
keeps the digits of bin B and of bin B − 1, an int64 each: first 64 upper digits, then 64 lower digits.

Bounds: an upper digit is at most 2^47, because |t| is at most 2^47 units of bin B. The remainder after the upper digit
is at most half a unit, which is 2^47 units of bin B − 1, so a lower digit is at most 2^47 too. `MAX_TERMS` (65,535)
digits sum to at most 2^63 − 2^47, which an int64 holds.
"""

from typing import Any

import numpy as np

from flcore_kernels.cpu import memory
from flcore_kernels.cpu.device_function import device_function
from flcore_kernels.totals import BLOCK, EMPTY

WIDTH = 48
"""Bits of a bin. A digit of at most 2^47 leaves room for 2^16 − 1 terms in an int64."""

BLOCK_BYTES = 16 * BLOCK

CEILING = 46
"""M carries 2^46 units on top of 1.5 · 2^52. While −2^46 ≤ digit < 2^46, t + M and M then differ in their lowest 47
bits only. So one bitwise OR over all terms shows whether one of them may be too large for the assumed level."""

DIGITS_AHEAD = 16384
"""Bytes by which a total's digits are prefetched ahead, one block of 1 KiB at a time. Prefetching a whole tile (8 KiB)
at once exceeds the processor's fill buffers, and the loop waits for them (measured: `finish` 80 to 42 ms)."""


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
    if bits >> np.int64(52) == np.int64(0):
        # A denormal is an integer multiple of 2^-1074. As a float64, that integer is normal and has an exponent.
        bits, below = memory.f64_bits(np.float64(bits)), np.int64(-1074)
    exponent = (bits >> np.int64(52)) - 1023 + below
    fraction = bits & np.int64(0xFFFFFFFFFFFFF)
    # ⌈log2 |t|⌉, not ⌊log2 |t|⌋: a power of two belongs to the lower level, because the bound of a level is inclusive.
    # The smallest B with ceiling ≤ 48·(B+1) − 1 is ⌊ceiling / 48⌋. Adding 48·30 = 1440 makes the dividend positive
    # (ceiling ≥ −1074), so that truncation, which CUDA's division does, is the floor.
    ceiling = exponent + (1 if fraction != np.int64(0) else 0)
    return (ceiling + WIDTH * 30) // WIDTH - 30


@device_function
def shift_of(level: Any) -> Any:
    """By how many bins float64 terms of a block are moved, so that M and its unit stay normal numbers."""
    # Levels of float64 terms are -23 to 21. M of level 21 would be 1.5 · 2^(52 + 48·21) > 2^1024, and the unit of the
    # bin below level -23 is 2^-1152 < 2^-1074. Moved by 4 bins, levels beyond ±18 become 15 to 17 and -19 to -15.
    if level > 18:
        return np.int64(-4)
    if level < -18:
        return np.int64(4)
    return np.int64(0)


@device_function
def bins_of(level: Any) -> Any:
    """(M, M, factor): M of a level's two bins, and the factor that brings terms there."""
    if level == EMPTY:
        level = np.int64(0)  # any level: all terms are zero, and their digits are zero in each
    shift = shift_of(level)
    top = level + shift
    # 1.5 · 2^52 units (not 2^52): t + M stays between 2^52 and 2^53 units for t of either sign, where the distance
    # between neighbouring float64 is exactly one unit.
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
    """The level of a total's block; `EMPTY` without a total (address 0)."""
    return np.int64(memory.load_i16(stored, block)) if stored != np.uint64(0) else np.int64(EMPTY)


@device_function
def begin_block(digits: Any, total: Any, held: Any, level: Any) -> None:
    """Set a block's digits to those of a total's block of level `held`, moved to `level`, which is not lower."""
    # Two levels up, neither of the two digits is kept. One level up, the upper digits become the lower ones: digits of
    # a bin do not depend on the block's level, so this equals a sum that had the higher level from the beginning.
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
    # The result has the higher of the two levels. The other side's digits are moved as in `begin_block`.
    if other_level == EMPTY:
        return level  # the other block's digits may be those of a cleared total
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
