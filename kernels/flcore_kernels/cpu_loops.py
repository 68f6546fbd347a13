"""The compiled loops of the CPU backend. No checks in here: `cpu` has made them.

Every loop is `nogil`, compiled at its first use for the dtypes that it meets, and kept on disk. None is compiled with
`fastmath`, so that a product and a sum are two roundings on every machine. Shapes: one-dimensional, equally long.
"""

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numpy as np
from numba import njit

Loop = TypeVar("Loop", bound=Callable[..., Any])


def compiled(loop: Loop) -> Loop:
    """Compile `loop` with Numba when it is first called, without the interpreter's lock, and cache it on disk."""
    return cast("Loop", njit(nogil=True, cache=True, error_model="numpy", boundscheck=False)(loop))


@compiled
def add(total: Any, part: Any, weight: Any) -> None:
    """total += weight · part, for floats and integers that convert to float64 by themselves."""
    for i in range(total.size):
        total[i] += weight * np.float64(part[i])


@compiled
def decode_bfloat16(bits: Any) -> Any:
    """Value of a bfloat16: the upper half of a float32."""
    return np.uint32(np.uint32(bits) << np.uint32(16)).view(np.float32)


@compiled
def decode_float16(bits: Any) -> Any:
    """Value of a float16: its exponent re-biased by a multiplication, which also takes denormals (exactly)."""
    wide = np.uint32(bits)
    sign = (wide & np.uint32(0x8000)) << np.uint32(16)
    body = np.uint32((wide & np.uint32(0x7FFF)) << np.uint32(13))
    finite = np.float32(np.uint32(body).view(np.float32) * np.float32(2.0**112)).view(np.uint32)
    special = np.uint32(body | np.uint32(0x7F800000))
    return np.uint32(sign | (special if body >= np.uint32(0x0F800000) else finite)).view(np.float32)


@compiled
def add_bfloat16(total: Any, part: Any, weight: Any) -> None:
    """total += weight · part, for bfloat16 stored as uint16."""
    for i in range(total.size):
        total[i] += weight * np.float64(decode_bfloat16(part[i]))


@compiled
def add_float16(total: Any, part: Any, weight: Any) -> None:
    """total += weight · part, for float16 stored as uint16."""
    for i in range(total.size):
        total[i] += weight * np.float64(decode_float16(part[i]))


@compiled
def round_to(value: Any, precision: Any, lowest_exponent: Any) -> Any:
    """`value` rounded to `precision` significant bits, ties to even; below 2^lowest_exponent, to its last place there.

    Adding and subtracting 1.5 · 2^52 quanta rounds to a whole number of quanta. The quantum is a power of two, so the
    result is exact in float64 and, if it does not overflow, in the narrow format.
    """
    exponent = np.int64(np.float64(np.abs(value)).view(np.uint64) >> np.uint64(52)) - 1023
    quantum = max(exponent, np.int64(lowest_exponent)) - (precision - 1)
    magic = 1.5 * np.uint64(np.uint64(quantum + 52 + 1023) << np.uint64(52)).view(np.float64)
    return (value + magic) - magic


@compiled
def divide(total: Any, weight_sum: Any, out: Any, base: Any, has_base: Any) -> Any:
    """out = base + total / weight_sum for float32 and float64; returns the first index that is not finite, or -1."""
    bad = -1
    for i in range(total.size):
        value = total[i] / weight_sum
        if has_base:
            value += np.float64(base[i])
        out[i] = value
        if bad < 0 and not np.isfinite(out[i]):
            bad = i
    return bad


@compiled
def divide_bfloat16(total: Any, weight_sum: Any, out: Any, base: Any, has_base: Any) -> Any:
    """The same for bfloat16: 8 significant bits, normal down to 2^-126."""
    bad = -1
    for i in range(total.size):
        value = total[i] / weight_sum
        if has_base:
            value += np.float64(decode_bfloat16(base[i]))
        rounded = np.float32(round_to(value, 8, -126))
        out[i] = np.uint16(np.float32(rounded).view(np.uint32) >> np.uint32(16))
        if bad < 0 and not np.isfinite(rounded):
            bad = i
    return bad


@compiled
def divide_float16(total: Any, weight_sum: Any, out: Any, base: Any, has_base: Any) -> Any:
    """The same for float16: 11 significant bits, normal down to 2^-14, at most 65,504."""
    bad = -1
    for i in range(total.size):
        value = total[i] / weight_sum
        if has_base:
            value += np.float64(decode_float16(base[i]))
        rounded = np.float32(round_to(value, 11, -14))
        if bad < 0 and not np.abs(rounded) <= 65504.0:
            bad = i
        bits = np.float32(rounded).view(np.uint32)
        body = np.float32(np.abs(rounded) * np.float32(2.0**-112)).view(np.uint32) >> np.uint32(13)
        out[i] = np.uint16(((bits >> np.uint32(16)) & np.uint32(0x8000)) | (body & np.uint32(0x7FFF)))
    return bad


@compiled
def divide_integer(total: Any, weight_sum: Any, out: Any, base: Any, has_base: Any, low: Any, high: Any) -> Any:
    """The same for integers: the quotient rounded half to even, and only then added to the base."""
    bad = -1
    for i in range(total.size):
        value = np.rint(total[i] / weight_sum)
        if has_base:
            value += np.float64(base[i])
        if low <= value <= high:
            out[i] = np.int64(value)
        elif bad < 0:
            bad = i
    return bad


@compiled
def largest(bits: Any, mask: Any) -> Any:
    """The largest masked bit pattern, 0 of an empty part."""
    top = bits.dtype.type(0)
    for i in range(bits.size):
        top = max(top, bits.dtype.type(bits[i] & mask))
    return top


@compiled
def largest_below(bits: Any, mask: Any, limit: Any) -> Any:
    """The largest masked bit pattern below `limit`."""
    top = bits.dtype.type(0)
    for i in range(bits.size):
        masked = bits.dtype.type(bits[i] & mask)
        if masked < limit:
            top = max(top, masked)
    return top


@compiled
def first_at_least(bits: Any, mask: Any, limit: Any) -> Any:
    """The index of the first masked bit pattern that reaches `limit`, or -1."""
    for i in range(bits.size):
        if (bits[i] & mask) >= limit:
            return i
    return -1


@compiled
def extremes(part: Any) -> Any:
    """The smallest and the largest element of an integer part, at least 0 and at most 0 respectively."""
    low = part.dtype.type(0)
    high = part.dtype.type(0)
    for i in range(part.size):
        low = min(low, part[i])
        high = max(high, part[i])
    return low, high


def _integer_divide(name: str) -> Callable[..., Any]:
    info = np.iinfo(name)
    low, high = max(float(info.min), -(2.0**53)), min(float(info.max), 2.0**53)

    def run(total: Any, weight_sum: float, out: Any, base: Any, has_base: bool) -> Any:
        return divide_integer(total, weight_sum, out, base, has_base, low, high)

    return run


_INTEGERS = ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")

ADD: dict[str, Callable[..., Any]] = {
    "float64": add,
    "float32": add,
    "float16": add_float16,
    "bfloat16": add_bfloat16,
    **dict.fromkeys(_INTEGERS, add),
}
"""The loop of `fold`, by dtype."""

DIVIDE: dict[str, Callable[..., Any]] = {
    "float64": divide,
    "float32": divide,
    "float16": divide_float16,
    "bfloat16": divide_bfloat16,
    **{name: _integer_divide(name) for name in _INTEGERS},
}
"""The loop of `finish`, by dtype."""
