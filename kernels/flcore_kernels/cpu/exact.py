"""Exact sums: integer digits in bins of fixed exponents, so that the sum does not depend on the order of its terms.

`cpu.digits` defines bins, digits and levels. The bins are those of Demmel and Nguyen (*Parallel Reproducible
Summation*, IEEE Transactions on Computers, 2015) and of Ahrens, Demmel and Nguyen (*Algorithms for Efficient
Reproducible Floating Point Summation*, ACM TOMS, 2020); they keep digits as floats, here they are integers. Three rules
make the sum independent of its order:

1. A digit depends only on the term t = fl64(weight · x) and on the bin. Adding M = 1.5 · 2^(52 + 48·B) to t rounds it
   to a multiple of the bin's unit, and the low bits of the sum *are* the digit: bits(t + M) − bits(M). The remainder,
   t − digit · unit, is exact and goes to the bin below in the same way. A block's level depends only on its largest
   term.
2. Digits are added as integers; nothing is carried from one bin to the other before the end.
3. A term is one product, rounded to float64. It is never contracted with the addition that follows.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np

from flcore_kernels.cpu import memory
from flcore_kernels.cpu.decode import Decoder
from flcore_kernels.cpu.device_function import device_function
from flcore_kernels.cpu.digits import (
    BLOCK_BYTES,
    CEILING,
    begin_block,
    bins_of,
    fetch_block,
    level_of,
    stored_level,
)
from flcore_kernels.totals import BLOCK, EMPTY

TILE = 512
"""Elements of a tile. Its digits (8 KiB) stay in the first-level cache while all operands are added, beside the lines
that are read of four operands. Tiles of 2,048 elements (32 KiB) were slower."""

LEVELS, SEEN = np.uint64(16 * TILE), np.uint64(16 * TILE + 8 * (TILE // BLOCK))
GUESS = np.uint64(16 * TILE + 16 * (TILE // BLOCK))
"""Byte offsets in a tile's scratch memory, after the digits: the level of each block (int64), the OR of its digits
(int64), and the level that the next tile's blocks are assumed to have (one int64)."""

WORK_BYTES = int(GUESS) + 8

AHEAD_BYTES = 8192
"""Bytes by which operands are prefetched ahead. In a float sum it is 2 or 4 KiB."""

MAGNITUDE = np.int64(0x7FFFFFFFFFFFFFFF)
"""All bits of a float64 but its sign. As integers, the bits of magnitudes are in the order of the magnitudes."""


def _unmoved(term: Any, factor: Any) -> Any:
    return term


def _moved(term: Any, factor: Any) -> Any:
    return term * factor


@device_function
def place(at: Any) -> Any:
    """The index of the upper digit of a tile's element: 128 digits a block, of which the first 64 are upper ones."""
    return 2 * at - at % BLOCK


@device_function
def mark(seen: Any, at: Any, now: Any) -> None:
    """OR bits into those seen of the digits of an element's block."""
    memory.store_i64(seen, at // BLOCK, memory.peek_i64(seen, at // BLOCK) | now)


@cache
def exact_sum(decode: Decoder, is_wide: bool) -> Callable[..., Any]:
    """Return the loop that sums a tile of some operands, on top of a total's blocks or on their own.

    `is_wide`: terms may have levels beyond -18 to 18, and are moved by a power of two (see `digits.shift_of`). Only
    float64 has such terms: with weights from 2^-64 to 2^64, float32 elements give terms from 2^-213 to 2^192, whose
    levels are -5 to 4.
    """
    # Moving a small block up is exact. Moving a large block down may round terms below 2^-830 to denormals; their
    # digits, whose units are at least 2^672 there, are zero either way.
    value, factor, step = decode.value, decode.factor, decode.step
    width, size = decode.bytes, np.uint64(decode.bytes)
    moved = device_function(_moved if is_wide else _unmoved)

    @device_function
    def fetch(address: Any, index: Any, count: Any) -> None:
        """Ask for the lines of some elements, far ahead."""
        ahead = address + np.uint64(index) * size + np.uint64(AHEAD_BYTES)
        for i in range(0, count * width, 64):
            memory.prefetch(ahead + np.uint64(i))

    @device_function
    def largest_of_four(a: Any, f: Any, w: Any, first: Any, n: Any) -> Any:
        a0, a1, a2, a3 = a
        f0, f1, f2, f3 = f
        w0, w1, w2, w3 = w
        top = np.int64(0)
        for i in range(first, first + n):
            b0 = memory.f64_bits(w0 * np.float64(value(a0, f0, i))) & MAGNITUDE
            b1 = memory.f64_bits(w1 * np.float64(value(a1, f1, i))) & MAGNITUDE
            b2 = memory.f64_bits(w2 * np.float64(value(a2, f2, i))) & MAGNITUDE
            b3 = memory.f64_bits(w3 * np.float64(value(a3, f3, i))) & MAGNITUDE
            top = max(top, max(max(b0, b1), max(b2, b3)))
        return top

    @device_function
    def survey(operands: Any, scales: Any, row: Any, first: Any, count: Any, weights: Any) -> Any:
        """The largest |weight · x| of a block, compared by its bits, for which a NaN is larger than any number."""
        top = np.int64(0)
        # Where fewer than four operands are left, the last one is looked at again: a maximum does not change by that.
        last = weights.size - 1
        for k in range(0, weights.size, 4):
            k1, k2, k3 = min(k + 1, last), min(k + 2, last), min(k + 3, last)
            a = (operands[row, k], operands[row, k1], operands[row, k2], operands[row, k3])
            w = (weights[k], weights[k1], weights[k2], weights[k3])
            for at in range(first, first + count, step):
                f = (
                    factor(scales[row, k], at),
                    factor(scales[row, k1], at),
                    factor(scales[row, k2], at),
                    factor(scales[row, k3], at),
                )
                top = max(top, largest_of_four(a, f, w, at, min(step, first + count - at)))
        return memory.f64_of(top)

    @device_function
    def add_four(digits: Any, a: Any, s: Any, w: Any, bins: Any, at: Any, first: Any, n: Any) -> Any:
        a0, a1, a2, a3 = a
        w0, w1, w2, w3 = w
        f0, f1, f2, f3 = factor(s[0], first), factor(s[1], first), factor(s[2], first), factor(s[3], first)
        high, low, scale = bins
        both = high + low  # exact: low is 24 units of the upper bin
        one = memory.f64_bits(high)
        # The bits of M are near 2^62, so sums of four of them wrap around in an int64. Their difference from 4 ·
        # bits(M) is a sum of four digits, at most 2^49, and is right modulo 2^64. So M is subtracted once for four
        # operands.
        high_bits, low_bits = np.int64(4) * one, np.int64(4) * memory.f64_bits(low)
        seen = np.int64(0)
        for i in range(n):
            j = first + i
            t0 = moved(w0 * np.float64(value(a0, f0, j)), scale)
            t1 = moved(w1 * np.float64(value(a1, f1, j)), scale)
            t2 = moved(w2 * np.float64(value(a2, f2, j)), scale)
            t3 = moved(w3 * np.float64(value(a3, f3, j)), scale)
            u0, u1, u2, u3 = t0 + high, t1 + high, t2 + high, t3 + high
            # The remainder t - digit · unit, plus M of the lower bin, with one rounding. `both - u` is M of the lower
            # bin minus digit · unit: a multiple of the unit of less than 2^53 units, hence exact. The last addition
            # rounds to the lower bin's unit, because its sum is between 23.5 and 24.5 units of the upper bin, where
            # neighbouring float64 are 2^-48 of these units apart. (Error-free as in Dekker's Fast2Sum, 1971: one
            # addition less than to extract digit and remainder separately.)
            v0, v1, v2, v3 = t0 + (both - u0), t1 + (both - u1), t2 + (both - u2), t3 + (both - u3)
            # Exponent and sign are compared too: an infinity, a NaN or a term far too large changes them.
            b0, b1, b2, b3 = memory.f64_bits(u0), memory.f64_bits(u1), memory.f64_bits(u2), memory.f64_bits(u3)
            seen |= np.int64(np.int64(b0 ^ one) | np.int64(b1 ^ one))
            seen |= np.int64(np.int64(b2 ^ one) | np.int64(b3 ^ one))
            upper = (b0 + b1) + (b2 + b3)
            lower = memory.f64_bits(v0) + memory.f64_bits(v1)
            lower += memory.f64_bits(v2) + memory.f64_bits(v3)
            memory.store_i64(digits, at + i, memory.peek_i64(digits, at + i) + (upper - high_bits))
            memory.store_i64(digits, at + BLOCK + i, memory.peek_i64(digits, at + BLOCK + i) + (lower - low_bits))
        return seen

    @device_function
    def add_one(digits: Any, a: Any, s: Any, w: Any, bins: Any, at: Any, first: Any, n: Any) -> Any:
        f = factor(s, first)
        high, low, scale = bins
        both = high + low
        high_bits, low_bits = memory.f64_bits(high), memory.f64_bits(low)
        seen = np.int64(0)
        for i in range(n):
            t = moved(w * np.float64(value(a, f, first + i)), scale)
            u = t + high
            v = t + (both - u)
            seen |= np.int64(memory.f64_bits(u) ^ high_bits)
            upper = memory.f64_bits(u) - high_bits
            lower = memory.f64_bits(v) - low_bits
            memory.store_i64(digits, at + i, memory.peek_i64(digits, at + i) + upper)
            memory.store_i64(digits, at + BLOCK + i, memory.peek_i64(digits, at + BLOCK + i) + lower)
        return seen

    @device_function
    def deposit(digits, levels, seen, total, operands, scales, row, offset, begin, end, weights):  # type: ignore[no-untyped-def]
        clients = weights.size
        # Whole steps have a constant count, which LLVM vectorises without a remainder loop. The rest of the last step
        # is added operand by operand.
        whole = end - (end - begin) % step
        k = 0
        while k + 4 <= clients:
            a = (operands[row, k], operands[row, k + 1], operands[row, k + 2], operands[row, k + 3])
            s = (scales[row, k], scales[row, k + 1], scales[row, k + 2], scales[row, k + 3])
            w = (weights[k], weights[k + 1], weights[k + 2], weights[k + 3])
            for at in range(begin, whole, step):
                if k == 0 and total != np.uint64(0):
                    fetch_block(total + np.uint64(16 * at))
                # In each step, four steps' lines of one operand are prefetched, in turn. A line of each operand in each
                # step was slower (0.36 against 0.28 ns a term for operands at the same offset of their pages).
                turn = at // step % 4
                fetch(operands[row, k + turn], offset + at - turn * step, np.int64(4 * step))
                bins = bins_of(memory.peek_i64(levels, at // BLOCK))
                now = add_four(digits, a, s, w, bins, place(at), offset + at, step)
                mark(seen, at, now)
            k += 4
        while k < clients:
            for at in range(begin, whole, step):
                if k == 0 and total != np.uint64(0):
                    fetch_block(total + np.uint64(16 * at))
                fetch(operands[row, k], offset + at, np.int64(step))
                bins = bins_of(memory.peek_i64(levels, at // BLOCK))
                now = add_one(digits, operands[row, k], scales[row, k], weights[k], bins, place(at), offset + at, step)
                mark(seen, at, now)
            k += 1
        if whole < end:
            bins = bins_of(memory.peek_i64(levels, whole // BLOCK))
            for k in range(clients):
                first, left = offset + whole, end - whole
                now = add_one(digits, operands[row, k], scales[row, k], weights[k], bins, place(whole), first, left)
                mark(seen, whole, now)

    @device_function
    def add_up(work, total, stored, operands, scales, row, offset, count, weights):  # type: ignore[no-untyped-def]
        """Sum a tile into `work`: digits on top of `total`'s, levels on top of the `stored` ones (0: no total).

        Returns -1, or the index of a block that has a term which is not finite. A block's level is assumed to be the
        total's, or the highest one of the last tile, so that operands are usually read once. If the digits show that
        the level is lower, the next lower one is tried. If they leave it open, the block's largest term is looked up
        (`survey`). A block whose level was wrong is summed again.
        """
        digits, levels, seen = work, work + LEVELS, work + SEEN
        blocks = (count + BLOCK - 1) // BLOCK
        guess, highest = memory.peek_i64(work + GUESS, 0), np.int64(EMPTY)
        for b in range(blocks):
            held = stored_level(stored, b)
            level = guess if held == EMPTY else held
            memory.store_i64(levels, b, level)
            memory.store_i64(seen, b, np.int64(0))
            begin_block(digits + np.uint64(b * BLOCK_BYTES), total + np.uint64(b * BLOCK_BYTES), held, level)
        # 0 * count: an int64. Numba would give a literal 0 another type than the values assigned later.
        b, begin, end, is_lowered = 0 * count, 0 * count, count, False
        while begin < end:
            deposit(digits, levels, seen, total, operands, scales, row, offset, begin, end, weights)
            begin = end
            while begin == end and b < blocks:
                held, level, now = stored_level(stored, b), memory.peek_i64(levels, b), memory.peek_i64(seen, b)
                # All upper digits are zero exactly if all |t| are at most half a unit of the level (a tie rounds to M,
                # whose significand is even), which is the bound of the level below. A total's own level never falls.
                is_low = held == EMPTY and now == np.int64(0)
                # A digit outside -2^46 ≤ digit < 2^46: the level may be right (|digit| ≤ 2^47) or too low. After a step
                # down it cannot be too low: the digits of the level above were all zero.
                is_open = not is_lowered and now >> np.int64(CEILING + 1) != np.int64(0)
                right, is_resolved = level, True
                if is_low and not is_lowered:
                    right, is_resolved = level - 1, False
                elif is_low or is_open:
                    n = min(BLOCK, count - b * BLOCK)
                    top = survey(operands, scales, row, offset + b * BLOCK, n, weights)
                    if not top < np.inf:
                        return b
                    right = max(level_of(top), held)
                is_lowered = not is_resolved
                if right != level:
                    memory.store_i64(levels, b, right)
                    memory.store_i64(seen, b, np.int64(0))
                    if right != EMPTY:  # else all terms are zero, and so are the digits that they added
                        begin_block(
                            digits + np.uint64(b * BLOCK_BYTES), total + np.uint64(b * BLOCK_BYTES), held, right
                        )
                        begin, end = b * BLOCK, min(b * BLOCK + BLOCK, count)
                if is_resolved:
                    highest = max(highest, right)
                    b += 1
        memory.store_i64(work + GUESS, 0, guess if highest == EMPTY else highest)
        return -1

    return add_up  # type: ignore[no-any-return]


@device_function
def begin_guessing(work: Any) -> None:
    """Assume level 0 for the first tile: terms of magnitudes from 2^-1 (exclusive) to 2^47."""
    memory.store_i64(work + GUESS, 0, np.int64(0))
