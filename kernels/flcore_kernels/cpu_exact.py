"""Exact sums: integer digits on absolute exponent bins, which no order of arrival can move.

Bin B counts multiples of 2^(48·B). A term t = fl64(weight · x) has a digit at every bin; the digit of a block's level B
(its top bin) and the one below it are kept, each as an int64 per element. (Demmel and Nguyen, *Parallel Reproducible
Summation*, 2015, keep them as floats.) The rules that make the sum independent of its order:

1. A digit depends on the term and the bin alone. Adding M = 1.5 · 2^(52 + 48·B) to t rounds it to a multiple of the
   bin's unit, and the low bits of the sum *are* the digit: bits(t + M) − bits(M). The rest t − digit goes to the bin
   below in the same way. A block's level is the smallest B with |t| ≤ 2^(48·(B+1) − 1) for all of its terms.
2. Digits are added as integers; nothing is carried from one bin to the other before the end.
3. A term is one product, rounded to float64. It is never contracted with the sum that follows.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from flcore_kernels import cpu_memory as memory
from flcore_kernels.cpu_cache import part_of_kernel
from flcore_kernels.cpu_decode import STEP, Decoder

WIDTH = 48
BLOCK = 64
TILE = 2048
"""Elements of a tile: 32 KiB of digits, and four parts' 32 KiB beside them, in the second-level cache."""

AHEAD_BYTES = 8192
"""How far ahead the parts are fetched: further than in a float sum, for there is more to do with each byte."""
EMPTY = -32768
"""The level of a block that has seen nothing but zeros."""


@part_of_kernel
def power_of_two(exponent: Any) -> Any:
    """2^exponent in float64, for exponents from -1022 to 1023."""
    return memory.f64_of(np.int64(exponent + 1023) << np.int64(52))


@part_of_kernel
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


@part_of_kernel
def shift_of(level: Any) -> Any:
    """By how many bins float64 terms of a block are moved, so that M and its unit stay normal numbers."""
    if level > 18:
        return np.int64(-4)
    if level < -18:
        return np.int64(4)
    return np.int64(0)


def _unmoved(term: Any, factor: Any) -> Any:
    return term


def _moved(term: Any, factor: Any) -> Any:
    return term * factor


def exact_sum(decode: Decoder, is_wide: bool) -> Callable[..., Any]:
    """Return the loop that sums a tile of some parts: digits at `digits`, levels (int64) at `levels`.

    `is_wide`: the dtype reaches beyond bins -18 to 18 (float64 alone does), and terms are scaled there, exactly.
    """
    value, factor, step, largest = decode.value, decode.factor, decode.step, decode.largest
    size, limit = np.uint64(decode.bytes), decode.limit
    line = 64 // decode.bytes
    moved = part_of_kernel(_moved if is_wide else _unmoved)

    @part_of_kernel
    def survey(tops: Any, part: Any, scales: Any, weight: Any, offset: Any, count: Any) -> None:
        """tops[b] = the largest |weight · x| of block b so far; a NaN or an infinity stays one."""
        for b in range((count + BLOCK - 1) // BLOCK):
            top = memory.peek_f64(tops, b)
            for at in range(b * BLOCK, min(b * BLOCK + BLOCK, count), step):
                first = offset + at
                f = factor(scales, first)
                # Two calls, not one with the smaller count: a count that is a constant is vectorised better.
                if at + step <= count:  # noqa: SIM108
                    magnitude = largest(part, f, first, step)
                else:
                    magnitude = largest(part, f, first, count - at)
                term = weight * magnitude if magnitude <= limit else np.nan
                if not term <= top and top == top:
                    top = term
            memory.store_f64(tops, b, top)

    @part_of_kernel
    def fetch(address: Any, index: Any) -> Any:
        ahead = address + np.uint64(index) * size + np.uint64(AHEAD_BYTES)
        for i in range(0, step, line):
            memory.prefetch(ahead + np.uint64(i) * size)

    @part_of_kernel
    def add_four(digits: Any, a: Any, s: Any, w: Any, high: Any, low: Any, scale: Any, at: Any, first: Any, n: Any):  # type: ignore[no-untyped-def]
        a0, a1, a2, a3 = a
        w0, w1, w2, w3 = w
        f0, f1, f2, f3 = factor(s[0], first), factor(s[1], first), factor(s[2], first), factor(s[3], first)
        both = high + low
        high_bits = np.int64(4) * memory.f64_bits(high)
        low_bits = np.int64(4) * memory.f64_bits(low)
        for i in range(n):
            j = first + i
            t0 = moved(w0 * np.float64(value(a0, f0, j)), scale)
            t1 = moved(w1 * np.float64(value(a1, f1, j)), scale)
            t2 = moved(w2 * np.float64(value(a2, f2, j)), scale)
            t3 = moved(w3 * np.float64(value(a3, f3, j)), scale)
            u0, u1, u2, u3 = t0 + high, t1 + high, t2 + high, t3 + high
            # both - u is M of the lower bin minus the digit's value, exactly; one more sum rounds the rest there.
            v0, v1, v2, v3 = t0 + (both - u0), t1 + (both - u1), t2 + (both - u2), t3 + (both - u3)
            upper = memory.f64_bits(u0) + memory.f64_bits(u1)
            upper += memory.f64_bits(u2) + memory.f64_bits(u3)
            lower = memory.f64_bits(v0) + memory.f64_bits(v1)
            lower += memory.f64_bits(v2) + memory.f64_bits(v3)
            memory.store_i64(digits, at + i, memory.peek_i64(digits, at + i) + (upper - high_bits))
            memory.store_i64(digits, at + BLOCK + i, memory.peek_i64(digits, at + BLOCK + i) + (lower - low_bits))

    @part_of_kernel
    def add_one(digits: Any, a: Any, s: Any, w: Any, high: Any, low: Any, scale: Any, at: Any, first: Any, n: Any):  # type: ignore[no-untyped-def]
        f = factor(s, first)
        both = high + low
        high_bits, low_bits = memory.f64_bits(high), memory.f64_bits(low)
        for i in range(n):
            t = moved(w * np.float64(value(a, f, first + i)), scale)
            u = t + high
            v = t + (both - u)
            upper = memory.f64_bits(u) - high_bits
            lower = memory.f64_bits(v) - low_bits
            memory.store_i64(digits, at + i, memory.peek_i64(digits, at + i) + upper)
            memory.store_i64(digits, at + BLOCK + i, memory.peek_i64(digits, at + BLOCK + i) + lower)

    @part_of_kernel
    def place(digits: Any, at: Any, sub: Any) -> Any:
        """Where the digits of element `at` of a tile begin; `sub` elements into its block."""
        return 2 * (at - sub) + sub

    @part_of_kernel
    def deposit(digits, levels, tops, parts, scales, row, offset, count, weights):  # type: ignore[no-untyped-def]
        clients = weights.size
        k = 0
        while k + 4 <= clients:
            a = (parts[row, k], parts[row, k + 1], parts[row, k + 2], parts[row, k + 3])
            s = (scales[row, k], scales[row, k + 1], scales[row, k + 2], scales[row, k + 3])
            w = (weights[k], weights[k + 1], weights[k + 2], weights[k + 3])
            for at in range(0, count, step):
                first = offset + at
                high, low, scale = constants(memory.peek_i64(levels, at // BLOCK))
                fetch(a[0], first)
                fetch(a[1], first)
                fetch(a[2], first)
                fetch(a[3], first)
                where = place(digits, at, at % BLOCK)
                if at + step <= count:
                    add_four(digits, a, s, w, high, low, scale, where, first, step)
                else:
                    add_four(digits, a, s, w, high, low, scale, where, first, count - at)
            for i in range(k, k + 4):
                survey(tops, parts[row, i], scales[row, i], weights[i], offset, count)
            k += 4
        while k < clients:
            a1, s1, w1 = parts[row, k], scales[row, k], weights[k]
            for at in range(0, count, step):
                first = offset + at
                high, low, scale = constants(memory.peek_i64(levels, at // BLOCK))
                fetch(a1, first)
                where = place(digits, at, at % BLOCK)
                if at + step <= count:
                    add_one(digits, a1, s1, w1, high, low, scale, where, first, step)
                else:
                    add_one(digits, a1, s1, w1, high, low, scale, where, first, count - at)
            survey(tops, a1, s1, w1, offset, count)
            k += 1

    @part_of_kernel
    def add_up(digits, levels, tops, parts, scales, row, offset, count, weights, guess):  # type: ignore[no-untyped-def]
        """Sum a tile; returns -1, or the index of a block that is not finite.

        Its levels are guessed to be `guess`, so that the parts are read from memory while there is something to do, and
        seen from the cache. Where a guess was wrong, the tile is summed again, with the levels that were seen.
        """
        blocks = (count + BLOCK - 1) // BLOCK
        for b in range(blocks):
            memory.store_i64(levels, b, np.int64(0) if guess == EMPTY else guess)
        is_right = False
        while not is_right:
            for i in range(2 * BLOCK * blocks):
                memory.store_i64(digits, i, np.int64(0))
            for b in range(blocks):
                memory.store_f64(tops, b, 0.0)
            deposit(digits, levels, tops, parts, scales, row, offset, count, weights)
            is_right = True
            for b in range(blocks):
                top = memory.peek_f64(tops, b)
                if not top < np.inf:
                    return b
                level = level_of(top)
                is_right = is_right and (level == memory.peek_i64(levels, b) or level == EMPTY)
                memory.store_i64(levels, b, level)
        return -1

    return add_up  # type: ignore[no-any-return]


@part_of_kernel
def constants(level: Any) -> Any:
    """M of a level's two bins, and the factor that brings terms there."""
    if level == EMPTY:
        level = np.int64(0)
    shift = shift_of(level)
    top = level + shift
    high = 1.5 * power_of_two(52 + WIDTH * top)
    low = 1.5 * power_of_two(52 + WIDTH * (top - 1))
    return high, low, power_of_two(WIDTH * shift)


@part_of_kernel
def raise_level(digits: Any, old: Any, new: Any) -> Any:
    """Make room for larger terms in a block: its upper digits become the lower ones, or both fall below."""
    for i in range(BLOCK):
        kept = memory.peek_i64(digits, i) if new == old + 1 else np.int64(0)
        memory.store_i64(digits, BLOCK + i, kept)
        memory.store_i64(digits, i, np.int64(0))


@part_of_kernel
def merge_block(digits: Any, level: Any, other: Any, other_level: Any) -> Any:
    """Add a block's digits to another's; returns the level that it has then."""
    if other_level == EMPTY:
        return level
    if other_level > level:
        raise_level(digits, level, other_level)
        level = other_level
    if other_level == level:
        for i in range(2 * BLOCK):
            memory.store_i64(digits, i, memory.peek_i64(digits, i) + memory.load_i64(other, i))
    elif other_level == level - 1:
        for i in range(BLOCK, 2 * BLOCK):
            memory.store_i64(digits, i, memory.peek_i64(digits, i) + memory.load_i64(other, i - BLOCK))
    return level


__all__ = ["BLOCK", "EMPTY", "STEP", "TILE", "WIDTH", "constants", "exact_sum", "level_of", "merge_block"]
