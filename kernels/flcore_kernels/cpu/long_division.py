"""The quotient of an exact total by the exact sum of weights, by long division in integers, rounded once.

A total is (upper · 2^48 + lower) · 2^(48·(level − 1)), an integer of up to 112 bits; the sum of weights an integer of
up to 196 bits times a power of two. This settles what `cpu.quotient` cannot tell, one element at a time.
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
    middle = np.uint64(np.uint64(a_high * b_low) + np.uint64(low >> _32))
    other = np.uint64(np.uint64(a_low * b_high) + np.uint64(middle & _LOW))
    upper = np.uint64(np.uint64(a_high * b_high) + np.uint64(middle >> _32) + np.uint64(other >> _32))
    return upper, np.uint64(np.uint64(other << _32) | np.uint64(low & _LOW))


@device_function
def bit_length(limbs: Any) -> Any:
    """Position above the highest set bit of some limbs."""
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
    """limbs <<= bits, in place; what leaves at the top is zero."""
    whole, part = bits // 64, np.uint64(bits % 64)
    for i in range(limbs.size - 1, -1, -1):
        upper = limbs[i - whole] if i >= whole else np.uint64(0)
        if part == np.uint64(0):
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
    """The sign of a - b, both non-negative."""
    for i in range(a.size - 1, -1, -1):
        if a[i] != b[i]:
            return 1 if a[i] > b[i] else -1
    return 0


@device_function
def as_float(limbs: Any) -> Any:
    """Limbs in two's complement, near enough, as a float64."""
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

    The limbs of the total and of the divisor are shifted so that the integer quotient has 62 or 63 bits. A float64
    estimate of it is right to 2^13; the exact remainder says by how much it is off, and then what was cut off. `work`
    are two arrays of 6 limbs.
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
    estimate = scale(as_float(total), -total_bits) / scale(as_float(other), -other_bits) * 2.0**62
    if shift >= 0:
        shift_left(total, shift)
    else:
        shift_left(other, -shift)
    quotient = np.uint64(estimate)
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
    """(quotient + rest) · 2^last, rounded; 0 < rest < 1 where `has_rest`, and quotient has 62 or 63 bits."""
    length = 63 if quotient >> np.uint64(62) != np.uint64(0) else 62
    drop = max(length - min(precision, 53), lowest - last)
    if drop > 63:
        return 0.0
    if drop <= 0:
        return scale(np.float64(quotient), last)
    kept = np.uint64(quotient >> np.uint64(drop))
    cut = np.uint64(quotient & np.uint64(np.uint64(np.uint64(1) << np.uint64(drop)) - np.uint64(1)))
    half = np.uint64(np.uint64(1) << np.uint64(drop - 1))
    is_odd = np.uint64(kept & np.uint64(1)) != np.uint64(0)
    if cut > half or (cut == half and (has_rest or is_odd)):
        kept = np.uint64(kept + np.uint64(1))
    return scale(np.float64(kept), last + drop)


__all__ = ["nearest"]
