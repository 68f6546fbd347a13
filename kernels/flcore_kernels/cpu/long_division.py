"""The quotient of an exact total and the exact sum of weights, by long division in integers, rounded once.

It decides, one element at a time, what `cpu.quotient` leaves undecided. An element of a total is an integer of up to
112 bits, upper · 2^48 + lower, times a power of two. The sum of weights is an integer of up to 196 bits times a power
of two: weights are multiples of 2^-116 (53 bits, at least 2^-64), and 65,535 of them of at most 2^64 are below 2^80.
Integers are arrays of 64-bit limbs, the lowest first.
"""

from typing import Any

import numpy as np

from flcore_kernels.cpu.device_function import device_function
from flcore_kernels.cpu.digits import WIDTH
from flcore_kernels.cpu.quotient import scale

_LOW = np.uint64(0xFFFFFFFF)
_32 = np.uint64(32)


@device_function
def multiply(a: Any, b: Any) -> Any:
    """The 128 bits of a · b, as (upper, lower) 64."""
    a_low, a_high = np.uint64(a & _LOW), np.uint64(a >> _32)
    b_low, b_high = np.uint64(b & _LOW), np.uint64(b >> _32)
    low = np.uint64(a_low * b_low)
    # Neither sum overflows: (2^32 - 1)^2 + (2^32 - 1) < 2^64.
    middle = np.uint64(np.uint64(a_high * b_low) + np.uint64(low >> _32))
    other = np.uint64(np.uint64(a_low * b_high) + np.uint64(middle & _LOW))
    upper = np.uint64(np.uint64(a_high * b_high) + np.uint64(middle >> _32) + np.uint64(other >> _32))
    return upper, np.uint64(np.uint64(other << _32) | np.uint64(low & _LOW))


@device_function
def bit_length(limbs: Any) -> Any:
    """The number of bits of a non-negative integer; 0 for zero."""
    for i in range(limbs.size - 1, -1, -1):
        if limbs[i] != np.uint64(0):
            length, rest = 64 * i, limbs[i]
            while rest != np.uint64(0):
                rest = np.uint64(rest >> np.uint64(1))
                length += 1
            return length
    return 0


@device_function
def shift_left(limbs: Any, bits: Any) -> None:
    """limbs <<= bits, in place. The caller shifts out zeros only."""
    whole, part = bits // 64, np.uint64(bits % 64)
    for i in range(limbs.size - 1, -1, -1):
        upper = limbs[i - whole] if i >= whole else np.uint64(0)
        if part == np.uint64(0):  # a shift by 64 - 0 bits is undefined
            limbs[i] = upper
        else:
            lower = limbs[i - whole - 1] if i >= whole + 1 else np.uint64(0)
            limbs[i] = np.uint64(np.uint64(upper << part) | np.uint64(lower >> np.uint64(np.uint64(64) - part)))


@device_function
def subtract_product(limbs: Any, factor: Any, other: Any) -> None:
    """limbs -= factor · other, modulo 2^(64 · size)."""
    carry = np.uint64(0)
    borrow = np.uint64(0)
    for i in range(limbs.size):
        upper, lower = multiply(factor, other[i])
        lower = np.uint64(lower + carry)
        carry = np.uint64(upper + (np.uint64(1) if lower < carry else np.uint64(0)))
        before = limbs[i]
        after = np.uint64(before - lower)
        taken = np.uint64(after - borrow)
        borrow = np.uint64(1) if (before < lower) or (after < borrow) else np.uint64(0)
        limbs[i] = taken


@device_function
def compare(a: Any, b: Any) -> Any:
    """-1, 0 or 1: the sign of a - b, for a and b that are not negative."""
    for i in range(a.size - 1, -1, -1):
        if a[i] != b[i]:
            return 1 if a[i] > b[i] else -1
    return 0


@device_function
def as_float(limbs: Any) -> Any:
    """An integer in two's complement as a float64, with a relative error of a few 2^-53."""
    is_negative = limbs[limbs.size - 1] >> np.uint64(63) != np.uint64(0)
    value = 0.0
    for i in range(limbs.size - 1, -1, -1):
        limb = np.uint64(~limbs[i]) if is_negative else limbs[i]
        value = value * 2.0**64 + np.float64(limb)
    return -(value + 1.0) if is_negative else value


@device_function
def nearest(
    upper: Any, lower: Any, level: Any, divisor: Any, exponent: Any, precision: Any, lowest: Any, work: Any
) -> Any:
    """The quotient, rounded once, ties to even, to `precision` bits and to no finer step than 2^lowest.

    The total or the divisor is shifted left so that the integer quotient has 62 or 63 bits. It is estimated in float64
    and corrected by its exact remainder, which also shows whether a fraction was cut off.

    `divisor` are limbs, times 2^`exponent`. `work` are two arrays of 6 limbs: a dividend of at most 112 bits and a
    divisor of at most 196, shifted to a difference of 62 bits, have at most 258 bits; the rest is room for the sign of
    a remainder.
    """
    is_negative = upper < 0 or (upper == 0 and lower < 0)
    if is_negative:
        upper, lower = -upper, -lower
    total, other = work
    total[:] = np.uint64(0)
    other[:] = np.uint64(0)
    # upper · 2^48 + lower, with |lower| ≤ 2^47
    total[0] = np.uint64(upper) << np.uint64(WIDTH)
    total[1] = np.uint64(upper) >> np.uint64(64 - WIDTH)
    if lower >= 0:
        total[0] = np.uint64(total[0] + np.uint64(lower))
        if total[0] < np.uint64(lower):
            total[1] = np.uint64(total[1] + np.uint64(1))
    else:
        if total[0] < np.uint64(-lower):
            total[1] = np.uint64(total[1] - np.uint64(1))
        total[0] = np.uint64(total[0] - np.uint64(-lower))
    for i in range(divisor.size):
        other[i] = divisor[i]
    total_bits, other_bits = bit_length(total), bit_length(other)
    if total_bits == 0:
        return 0.0
    shift = 62 - (total_bits - other_bits)
    # Both are scaled to [1/2, 1), because their own values could leave float64's range. The estimate is at most
    # 2^63. Its relative error of a few 2^-53 makes it wrong by less than 2^13.
    estimate = scale(as_float(total), -total_bits) / scale(as_float(other), -other_bits) * 2.0**62
    if shift >= 0:
        shift_left(total, shift)
    else:
        shift_left(other, -shift)
    quotient = np.uint64(estimate)
    # The remainder may be negative; limbs then hold it in two's complement. Its quotient in float64 is off by one at
    # most, which the two loops below mend.
    subtract_product(total, quotient, other)
    off = np.int64(np.floor(as_float(total) / as_float(other)))
    if off >= 0:
        subtract_product(total, np.uint64(off), other)
        quotient = np.uint64(quotient + np.uint64(off))
    else:
        add_product(total, np.uint64(-off), other)
        quotient = np.uint64(quotient - np.uint64(-off))
    while total[5] >> np.uint64(63) != np.uint64(0):
        add_product(total, np.uint64(1), other)
        quotient = np.uint64(quotient - np.uint64(1))
    while compare(total, other) >= 0:
        subtract_product(total, np.uint64(1), other)
        quotient = np.uint64(quotient + np.uint64(1))
    has_rest = total[0] | total[1] | total[2] | total[3] | total[4] | total[5] != np.uint64(0)
    last = WIDTH * (level - 1) - exponent - shift
    value = round_bits(quotient, has_rest, last, precision, lowest)
    return -value if is_negative else value


@device_function
def add_product(limbs: Any, factor: Any, other: Any) -> None:
    """limbs += factor · other, modulo 2^(64 · size)."""
    carry = np.uint64(0)
    for i in range(limbs.size):
        upper, lower = multiply(factor, other[i])
        lower = np.uint64(lower + carry)
        carry = np.uint64(upper + (np.uint64(1) if lower < carry else np.uint64(0)))
        summed = np.uint64(limbs[i] + lower)
        if summed < lower:
            carry = np.uint64(carry + np.uint64(1))
        limbs[i] = summed


@device_function
def round_bits(quotient: Any, has_rest: Any, last: Any, precision: Any, lowest: Any) -> Any:
    """(quotient + fraction) · 2^last, rounded once; 0 < fraction < 1 if `has_rest`. `quotient` has 62 or 63 bits."""
    length = 63 if quotient >> np.uint64(62) != np.uint64(0) else 62
    drop = max(length - min(precision, 53), lowest - last)
    # The precision (64 for integers) is limited to the 53 bits of the float64 that is returned, so at least 9 bits are
    # dropped; more, if the result's finest step, 2^lowest, is larger than its last bit.
    if drop > 63:  # below half of the finest step
        return 0.0
    kept = np.uint64(quotient >> np.uint64(drop))
    cut = np.uint64(quotient & np.uint64(np.uint64(np.uint64(1) << np.uint64(drop)) - np.uint64(1)))
    half = np.uint64(np.uint64(1) << np.uint64(drop - 1))
    is_odd = np.uint64(kept & np.uint64(1)) != np.uint64(0)
    if cut > half or (cut == half and (has_rest or is_odd)):
        kept = np.uint64(kept + np.uint64(1))
    return scale(np.float64(kept), last + drop)


__all__ = ["nearest"]
