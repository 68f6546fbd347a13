"""The quotient of an exact total by the exact sum of weights, rounded once: as far as float64 can tell.

A total T is (upper · 2^48 + lower) · 2^(48·(level − 1)), two integers; the sum of weights S is a float64 and a rest.
Most results show in a quotient that is right to 2^-50: where it is not that close to the middle of two neighbours, it
rounds as the truth does (`quick_mean`). The others need the sign of T − q · S for a q next to the truth, which sums of
two float64 give exactly (`careful_mean`): a q that is moved to its odd neighbour where T / S is not q rounds to a
narrower dtype as the truth does (Boldo and Melquiond, *Emulation of FMA and correctly rounded sums*, 2008). What is
left uncertain, near the middle of two float64 or with an S of more than 53 bits, is divided at length.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np

from flcore_kernels.cpu import memory
from flcore_kernels.cpu.device_function import device_function
from flcore_kernels.cpu.digits import BLOCK, WIDTH
from flcore_kernels.cpu.encode import Encoder
from flcore_kernels.dtypes import Storage

ERROR = 2.0**-49
CERTAIN, UNCERTAIN = np.int64(0), np.int64(1)
_SPLIT = 2.0**27 + 1.0


@device_function
def scale(value: Any, exponent: Any) -> Any:
    """value · 2^exponent, in steps that are powers of two of a normal exponent; exact unless it leaves float64."""
    while exponent > 1000:
        value *= 2.0**1000
        exponent -= 1000
    while exponent < -1000:
        value *= 2.0**-1000
        exponent += 1000
    return value * memory.f64_of(np.int64(exponent + 1023) << np.int64(52))


@device_function
def carried(digits: Any, index: Any) -> Any:
    """The two digits of an element, the lower one at most 2^47."""
    lower = memory.peek_i64(digits, BLOCK + index)
    carry = (lower + (np.int64(1) << np.int64(WIDTH - 1))) >> np.int64(WIDTH)
    return memory.peek_i64(digits, index) + carry, lower - (carry << np.int64(WIDTH))


@device_function
def two_sum(a: Any, b: Any) -> Any:
    """a + b and what its rounding left (Knuth)."""
    total = a + b
    back = total - a
    return total, (a - (total - back)) + (b - back)


@device_function
def two_product(a: Any, b: Any) -> Any:
    """a · b and what its rounding left (Dekker, Veltkamp)."""
    product = a * b
    big = a * _SPLIT
    a_high = big - (big - a)
    a_low = a - a_high
    big = b * _SPLIT
    b_high = big - (big - b)
    b_low = b - b_high
    return product, ((a_high * b_high - product) + a_high * b_low + a_low * b_high) + a_low * b_low


@device_function
def neighbour(value: Any, direction: Any) -> Any:
    """The float64 next to a value that is not zero, towards the sign of `direction`; itself for a direction of 0."""
    up = np.int64(1) if direction > 0.0 else np.int64(0)
    down = np.int64(1) if direction < 0.0 else np.int64(0)
    away = np.int64(1) if value > 0.0 else np.int64(-1)
    return memory.f64_of(memory.f64_bits(value) + (up - down) * away)


@device_function
def divide(upper: Any, lower: Any, divisor: Any, rest: Any) -> Any:
    """(q, T − q · S, how wrong that may be): q is within 0.51 units of its last place of T / S."""
    high, low = two_sum(np.float64(upper) * 2.0**WIDTH, np.float64(lower))
    first = high / divisor
    product, left = two_product(first, divisor)
    remainder = (high - product) - left
    outside = first * rest
    quotient = first + ((remainder + low) - outside) / divisor
    moved, lost = two_product(quotient - first, divisor)
    a, b = two_sum(remainder, -moved)
    c, d = two_sum(a, low - outside)
    e, f = two_sum(b, d)
    whole, tail = two_sum(c, e)
    left_out = np.abs(rest) + np.abs(lost) + np.abs(f) + np.abs(tail)
    return quotient, whole, 0.0 if left_out == 0.0 else 2.0**-98 * np.abs(high)


@device_function
def odd_neighbour(quotient: Any, remainder: Any) -> Any:
    """`quotient`, or where something remains and its last bit is 0 the neighbour on that side, whose last bit is 1."""
    is_odd = np.int64(memory.f64_bits(quotient) & np.int64(1))
    return neighbour(quotient, 0.0 if is_odd else remainder)


@cache
def quick_mean(row: Storage, encode: Encoder) -> Callable[..., Any]:
    """Return `quick(digits, index, (factor,))`: the rounded quotient, and bits that are not zero where it is uncertain.

    `factor` is 2^(48·(level − 1)) / S in float64. A float is in doubt where the bits that rounding cuts off are within
    16 units of one half, or where it is not a normal number of its dtype.
    """
    round_once = encode.round
    is_integer = not row.is_float
    cut = 53 - row.precision
    cut_off, half = np.int64((1 << max(cut, 0)) - 1), np.int64(1 << max(cut - 1, 0))
    smallest = 2.0 ** (row.lowest + row.precision - 1) if row.is_float else 0.0

    @device_function
    def quick(digits: Any, index: Any, arguments: Any) -> Any:
        (factor,) = arguments
        upper, lower = carried(digits, index)
        quotient = (np.float64(upper) * 2.0**WIDTH + np.float64(lower)) * factor
        if is_integer:
            below, above = round_once(quotient * (1.0 - ERROR)), round_once(quotient * (1.0 + ERROR))
            return below + 0.0, CERTAIN if below == above else UNCERTAIN
        # Moved so that the middle is 0 modulo 2^cut, with 16 units to either side of it: nothing is left above them.
        beyond_half = (memory.f64_bits(quotient) + (half + 16)) & cut_off
        uncertain = np.int64(UNCERTAIN if beyond_half <= 32 else CERTAIN)
        uncertain |= np.int64(UNCERTAIN if np.abs(quotient) < smallest else CERTAIN)
        return round_once(quotient), uncertain

    return quick  # type: ignore[no-any-return]


@cache
def careful_mean(row: Storage, encode: Encoder) -> Callable[..., Any]:
    """Return `careful(digits, index, (unit, divisor, rest))`, which does the same with `unit` = 2^(48·(level − 1))."""
    round_once = encode.round
    is_integer = not row.is_float

    @device_function
    def narrow(quotient: Any, remainder: Any, error: Any, divisor: Any, unit: Any) -> Any:
        value = round_once(odd_neighbour(quotient, remainder) * unit) + 0.0
        uncertain = CERTAIN if np.abs(remainder) >= error else UNCERTAIN
        if is_integer:
            uncertain |= CERTAIN if np.abs(value) < 2.0**50 else UNCERTAIN
        return value, uncertain

    @device_function
    def wide(quotient: Any, remainder: Any, error: Any, divisor: Any, unit: Any) -> Any:
        """The remainder is compared with half a step times S; at half a step the even neighbour is right."""
        beside = neighbour(quotient, remainder)
        over = np.abs(remainder) - np.abs(beside - quotient) * 0.5 * divisor
        is_odd = np.int64(memory.f64_bits(quotient) & np.int64(1))
        at_half = beside if is_odd else quotient
        value = beside if over > 0.0 else (quotient if over < 0.0 else at_half)
        return value * unit + 0.0, CERTAIN if np.abs(over) >= error else UNCERTAIN

    round_checked = wide if row.precision == 53 else narrow

    @device_function
    def careful(digits: Any, index: Any, arguments: Any) -> Any:
        unit, divisor, rest = arguments
        upper, lower = carried(digits, index)
        quotient, remainder, error = divide(upper, lower, divisor, rest)
        value, uncertain = round_checked(quotient, remainder, error, divisor, unit)
        uncertain |= CERTAIN if np.abs(np.float64(upper)) < 2.0**53 else UNCERTAIN
        is_zero = np.int64(upper | lower) == np.int64(0)
        return 0.0 if is_zero else value, CERTAIN if is_zero else uncertain

    return careful  # type: ignore[no-any-return]
