"""The quotient of an exact total and the exact sum of weights, rounded once, wherever float64 can decide it.

An element of a total is T = (upper · 2^48 + lower) · unit with integers `upper` and `lower` and unit = 2^(48·(level −
1)). The sum of weights is S = divisor + rest, two float64. Three steps, each for what the one before leaves undecided:

1. `quick_mean` computes T / S in float64 with a relative error below 2^-50. Away from the midpoint between two
   neighbours of the result's dtype, it rounds as the exact quotient does.
2. `careful_mean` computes the sign of the remainder T − q · S for a float64 q next to T / S with error-free
   transformations (sums: Knuth; products: Dekker, with Veltkamp's splitting). If the remainder is not zero, q is
   replaced by the neighbour with an odd last bit (rounding to odd), which rounds to a narrower dtype as the exact
   quotient does (Boldo and Melquiond, *Emulation of a FMA and correctly rounded sums: proved algorithms using rounding
   to odd*, IEEE Transactions on Computers, 2008).
3. `long_division` decides the rest: results near the midpoint of two float64, and remainders near zero where S has more
   than 53 bits.

Nothing over- or underflows in steps 1 and 2, which `cpu.finish` uses for levels -15 to 15 only: |T / unit| < 2^112,
2^-64 ≤ S < 2^80 (65,535 weights of at most 2^64), and unit is from 2^-768 to 2^672. So a quotient that is not zero is
between 2^-848 and 2^848.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np

from flcore_kernels.cpu import memory
from flcore_kernels.cpu.device_function import device_function
from flcore_kernels.cpu.digits import WIDTH
from flcore_kernels.cpu.encode import Encoder
from flcore_kernels.dtypes import Storage
from flcore_kernels.totals import BLOCK

ERROR = 2.0**-49
"""Relative error that `quick_mean` allows for: more than twice the sum of its roundings (six of 2^-53: the five that
it names, and the product with 1 ± ERROR)."""

CERTAIN, UNCERTAIN = np.int64(0), np.int64(1)
"""Combined by bitwise OR, so that loops over elements have no branches and are vectorised."""

_SPLIT = 2.0**27 + 1.0
"""Veltkamp's constant: cuts 53 bits into halves of at most 26 bits and a sign, whose products are exact."""


@device_function
def scale(value: Any, exponent: Any) -> Any:
    """value · 2^exponent; exact if the result is a float64, which 2^exponent need not be."""
    while exponent > 1000:
        value *= 2.0**1000
        exponent -= 1000
    while exponent < -1000:
        value *= 2.0**-1000
        exponent += 1000
    return value * memory.f64_of(np.int64(exponent + 1023) << np.int64(52))


@device_function
def carried(digits: Any, index: Any) -> Any:
    """The digit sums of an element as (upper, lower) with the same value and |lower| ≤ 2^47."""
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
    # Not fma(a, b, -product), which gives the same two numbers: LLVM calls a slow library function for it on processors
    # without the instruction. No intermediate over- or underflows (see the module's bounds), so both are error-free.
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
    # Bits of float64 are sign and magnitude: one more is the next number away from zero.
    away = np.int64(1) if value > 0.0 else np.int64(-1)
    return memory.f64_of(memory.f64_bits(value) + (up - down) * away)


@device_function
def divide(upper: Any, lower: Any, divisor: Any, rest: Any) -> Any:
    """(q, remainder T − q · S, bound of its error), in multiples of `unit`. |q − T / S| is at most 0.51 ulp of q."""
    # Exact if |upper| < 2^53, which `careful_mean` checks afterwards.
    high, low = two_sum(np.float64(upper) * 2.0**WIDTH, np.float64(lower))
    first = high / divisor
    product, left = two_product(first, divisor)
    # Exact: product is within an ulp of high (Sterbenz), and the remainder of a correctly rounded division is a
    # float64.
    remainder = (high - product) - left
    outside = first * rest
    quotient = first + ((remainder + low) - outside) / divisor
    # T - q · S is now remainder + low - outside - (q - first) · S. The difference q - first is exact (Sterbenz).
    moved, lost = two_product(quotient - first, divisor)
    a, b = two_sum(remainder, -moved)
    c, d = two_sum(a, low - outside)
    e, f = two_sum(b, d)
    whole, tail = two_sum(c, e)
    # Without a rest, and if nothing was lost, `whole` is the remainder exactly. Otherwise, with |q - first| · S ≤ 2^-51
    # · |high|, |low| ≤ 2^-53 · |high| and |rest| ≤ 2^-53 · S, these are left out, relative to |high|: lost and (q -
    # first) · rest, 2^-104 each; the roundings of low - outside, 2^-105, of first · rest and of `whole` (tail), 2^-106
    # each; f is far smaller. Their sum is below 2^-102.
    left_out = np.abs(rest) + np.abs(lost) + np.abs(f) + np.abs(tail)
    return quotient, whole, 0.0 if left_out == 0.0 else 2.0**-98 * np.abs(high)


@device_function
def odd_neighbour(quotient: Any, remainder: Any) -> Any:
    """Round to odd: `quotient` if its last bit is 1 or nothing remains, else the neighbour on the remainder's side."""
    is_odd = np.int64(memory.f64_bits(quotient) & np.int64(1))
    return neighbour(quotient, 0.0 if is_odd else remainder)


@cache
def quick_mean(storage: Storage, encode: Encoder) -> Callable[..., Any]:
    """Return `quick(digits, index, (factor,))`, which gives the rounded quotient and `CERTAIN` or `UNCERTAIN`.

    `factor` is unit / S in float64. A float is uncertain if the bits that rounding cuts off are within 16 ulp (of
    float64) of the midpoint, or if it is not a normal number of its dtype.
    """
    # Five roundings of 2^-53 each (upper to float64, the sum, S, unit / S, the product) are a relative error below
    # 2^-50, which is at most 5 ulp, or 10 where the exact quotient is below the power of two that this one has reached.
    round_once = encode.round
    is_integer = not storage.is_float
    cut = 53 - storage.precision
    cut_off, half = np.int64((1 << max(cut, 0)) - 1), np.int64(1 << max(cut - 1, 0))
    smallest = 2.0 ** (storage.lowest + storage.precision - 1) if storage.is_float else 0.0

    @device_function
    def quick(digits: Any, index: Any, arguments: Any) -> Any:
        (factor,) = arguments
        upper, lower = carried(digits, index)
        quotient = (np.float64(upper) * 2.0**WIDTH + np.float64(lower)) * factor
        if is_integer:
            below, above = round_once(quotient * (1.0 - ERROR)), round_once(quotient * (1.0 + ERROR))
            return below + 0.0, CERTAIN if below == above else UNCERTAIN
        # Moved so that the midpoint is 16 modulo 2^cut: within 16 ulp of it are the values 0 to 32.
        beyond_half = (memory.f64_bits(quotient) + (half + 16)) & cut_off
        uncertain = np.int64(UNCERTAIN if beyond_half <= 32 else CERTAIN)
        uncertain |= np.int64(UNCERTAIN if np.abs(quotient) < smallest else CERTAIN)
        return round_once(quotient), uncertain

    return quick  # type: ignore[no-any-return]


@cache
def careful_mean(storage: Storage, encode: Encoder) -> Callable[..., Any]:
    """Return `careful(digits, index, (unit, divisor, rest))`, with results as of `quick_mean`."""
    round_once = encode.round
    is_integer = not storage.is_float

    @device_function
    def narrow(quotient: Any, remainder: Any, error: Any, divisor: Any, unit: Any) -> Any:
        value = round_once(odd_neighbour(quotient, remainder) * unit) + 0.0
        uncertain = CERTAIN if np.abs(remainder) >= error else UNCERTAIN
        if is_integer:
            # Rounding to odd takes two bits more than the result has; below 2^50 a float64 has three after the point.
            # (Float dtypes here have at most 24 bits of 53.)
            uncertain |= CERTAIN if np.abs(value) < 2.0**50 else UNCERTAIN
        return value, uncertain

    @device_function
    def wide(quotient: Any, remainder: Any, error: Any, divisor: Any, unit: Any) -> Any:
        """Compare the remainder with half a step times S. At half a step, the neighbour with an even last bit is right.

        A step is the distance of `quotient` and its neighbour on the remainder's side.
        """
        beside = neighbour(quotient, remainder)
        over = np.abs(remainder) - np.abs(beside - quotient) * 0.5 * divisor
        is_odd = np.int64(memory.f64_bits(quotient) & np.int64(1))
        at_half = beside if is_odd else quotient
        value = beside if over > 0.0 else (quotient if over < 0.0 else at_half)
        return value * unit + 0.0, CERTAIN if np.abs(over) >= error else UNCERTAIN

    round_checked = wide if storage.precision == 53 else narrow

    @device_function
    def careful(digits: Any, index: Any, arguments: Any) -> Any:
        unit, divisor, rest = arguments
        upper, lower = carried(digits, index)
        quotient, remainder, error = divide(upper, lower, divisor, rest)
        value, uncertain = round_checked(quotient, remainder, error, divisor, unit)
        uncertain |= CERTAIN if np.abs(np.float64(upper)) < 2.0**53 else UNCERTAIN  # else `divide` rounded it
        is_zero = np.int64(upper | lower) == np.int64(0)
        return 0.0 if is_zero else value, CERTAIN if is_zero else uncertain

    return careful  # type: ignore[no-any-return]
