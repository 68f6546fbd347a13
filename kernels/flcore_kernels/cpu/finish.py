"""From a total to a result: divide, round once, cast and write, in one pass, 64 elements at a time.

With a base, the mean is added to the base's elements before the sum is rounded to the result's dtype. That mean is
right to a few ulp of float64; for integers it is the rounded mean. Large results are written with non-temporal stores.

Inner loops have no branches, so that LLVM vectorises them: they store every value and combine flags of those that do
not fit. Only if a flag is set, a second loop looks for the first such element.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np

from flcore_kernels.cpu import memory
from flcore_kernels.cpu.decode import Decoder
from flcore_kernels.cpu.device_function import device_function
from flcore_kernels.cpu.digits import WIDTH, fetch_block
from flcore_kernels.cpu.encode import Encoder
from flcore_kernels.cpu.long_division import nearest
from flcore_kernels.cpu.quotient import careful_mean, carried, quick_mean, scale
from flcore_kernels.dtypes import STORAGE, Storage
from flcore_kernels.totals import BLOCK, EMPTY

FITS, MISFIT = np.int64(0), np.int64(1)


@device_function
def emit(target: Any, source: Any, size: Any, past_cache: Any) -> None:
    """Copy `size` bytes, with non-temporal stores if `past_cache` and the target's alignment (16) allow it."""
    done = 0
    if past_cache and target & np.uint64(15) == np.uint64(0):
        # A normal store reads the cache line first and evicts another one. A non-temporal one does neither. `source` is
        # a block in the first-level cache, because the loop that computes values cannot use such stores itself: they
        # write whole vectors at aligned addresses, and a result may be narrow and begin anywhere.
        for i in range(0, size - 15, 16):
            memory.stream_16(target + np.uint64(i), source + np.uint64(i))
        done = size - size % 16
    for i in range(done, size):
        memory.store_u8(target, i, memory.peek_u8(source, i))


@device_function
def no_base(address: Any, factor: Any, index: Any) -> Any:
    """0.0, the element of a base where there is none."""
    return 0.0


def _value_of(base_of: Decoder | None) -> Callable[..., Any]:
    return no_base if base_of is None else base_of.value


@cache
def float_finish(real: Any, storage: Storage, encode: Encoder, base_of: Decoder | None) -> Callable[..., Any]:
    """Return the loop that finishes a tile of a float32 or float64 total; `base_of` reads a base, if there is one.

    `finish(total, count, divisor, target, base, past_cache, result_block)`: `total`, `target` and `base` are addresses.
    `result_block` is the address of 512 bytes of scratch memory: a block of the widest dtype. Returns the first element
    that does not fit, or -1.
    """
    peek = memory.peek_f32 if real is np.float32 else memory.peek_f64
    round_once, base_value, store, low, high = encode.round, _value_of(base_of), encode.store, encode.low, encode.high
    size = encode.bytes
    has_base = base_of is not None
    is_single, is_integer = real is np.float32, not storage.is_float
    # The mean of a float32 total is defined as a float32, which is then rounded to a narrower dtype: float32 vectors
    # hold twice as many elements as float64 vectors.
    is_short = is_single and not has_base and encode.store_single is not None
    store_single, high_single = encode.store_single or store, np.float32(min(high, STORAGE["float32"].range[1]))

    @device_function
    def mean(total: Any, index: Any, divisor: Any, inverse: Any) -> Any:
        if is_single:
            # One division for all elements: in float64, the error of the inverse is far below float32's last place.
            return np.float64(peek(total, index)) * inverse
        return np.float64(peek(total, index)) / divisor

    @device_function
    def result(total: Any, index: Any, divisor: Any, inverse: Any, base: Any) -> Any:
        value = mean(total, index, divisor, inverse)
        if has_base:
            if is_integer:
                value = round_once(value)
            value += np.float64(base_value(base, np.float32(1.0), index))
        return round_once(value) + 0.0  # -0.0 becomes 0.0: no result depends on how a zero came about

    @device_function
    def block(total: Any, start: Any, count: Any, divisor: Any, inverse: Any, base: Any, result_block: Any) -> Any:
        misfits = FITS
        for i in range(count):
            if is_short:
                single = np.float32(mean(total, start + i, divisor, inverse)) + np.float32(0.0)
                misfits |= FITS if np.abs(single) <= high_single else MISFIT
                store_single(result_block, i, single)
            else:
                value = result(total, start + i, divisor, inverse, base)
                misfits |= FITS if low <= value <= high else MISFIT
                store(result_block, i, value)
        return misfits

    @device_function
    def finish(total: Any, count: Any, divisor: Any, target: Any, base: Any, past_cache: Any, result_block: Any) -> Any:
        inverse = 1.0 / divisor
        for start in range(0, count, BLOCK):
            n = min(BLOCK, count - start)
            if block(total, start, n, divisor, inverse, base, result_block) != FITS:
                for i in range(start, start + n):
                    if not low <= result(total, i, divisor, inverse, base) <= high:
                        return i
            emit(target + np.uint64(start * size), result_block, n * size, past_cache)
        return -1

    return finish  # type: ignore[no-any-return]


@cache
def exact_finish(storage: Storage, encode: Encoder, base_of: Decoder | None) -> Callable[..., Any]:
    """Return the loop that finishes a tile of an exact total; `base_of` reads a base, if there is one.

    `finish(digits, levels, first, count, divisor, rest, target, base, past_cache, result_block, unresolved)`: `first`
    is the index of the tile's first element in the total; `divisor` + `rest` is the sum of weights. Blocks with an
    uncertain quotient or a value that does not fit are not written. Their first elements are appended to `unresolved`,
    whose first item counts them; the caller has them divided by `exact_fallback`.
    """
    quick, careful = quick_mean(storage, encode), careful_mean(storage, encode)
    round_once, base_value, store, low, high = encode.round, _value_of(base_of), encode.store, encode.low, encode.high
    size = encode.bytes
    has_base = base_of is not None
    is_integer, is_float64 = not storage.is_float, storage.precision == 53

    @device_function
    def shifted(digits: Any, index: Any, arguments: Any) -> Any:
        factor, base, start = arguments
        if is_integer:
            value, uncertain = quick(digits, index, (factor,))
        else:
            upper, lower = carried(digits, index)
            value, uncertain = (np.float64(upper) * 2.0**WIDTH + np.float64(lower)) * factor, FITS
        return round_once(value + np.float64(base_value(base, np.float32(1.0), start + index))) + 0.0, uncertain

    def each(of: Callable[..., Any]) -> Callable[..., Any]:
        @device_function
        def write(digits: Any, count: Any, arguments: Any, result_block: Any) -> Any:
            any_uncertain = FITS
            for i in range(count):
                value, uncertain = of(digits, i, arguments)
                any_uncertain |= uncertain
                any_uncertain |= FITS if low <= value <= high else MISFIT
                store(result_block, i, value)
            return any_uncertain

        return write  # type: ignore[no-any-return]

    write_quick, write_careful, write_shifted = each(quick), each(careful), each(shifted)

    @device_function
    def finish(  # type: ignore[no-untyped-def]
        digits, levels, first, count, divisor, rest, target, base, past_cache, result_block, unresolved
    ):
        for start in range(0, count, BLOCK):
            n = min(BLOCK, count - start)
            level = memory.peek_i64(levels, start // BLOCK)
            here = digits + np.uint64(16 * start)
            fetch_block(here)
            if level == EMPTY:
                level = np.int64(0)
            unit = scale(1.0, WIDTH * (level - 1))
            # Up to level ±15, no quotient leaves float64's normal numbers (`cpu.quotient`). Other levels, which only
            # float64 operands have, go to long division.
            uncertain = MISFIT
            if -15 <= level <= 15:
                if has_base:
                    uncertain = write_shifted(here, n, (unit / divisor, base, start), result_block)
                else:
                    if not is_float64:  # a float64 quotient has no spare bits to tell how near a midpoint is
                        uncertain = write_quick(here, n, (unit / divisor,), result_block)
                    if uncertain != FITS:
                        uncertain = write_careful(here, n, (unit, divisor, rest), result_block)
            if uncertain == FITS:
                emit(target + np.uint64(start * size), result_block, n * size, past_cache)
            else:
                unresolved[0] += 1
                unresolved[unresolved[0]] = first + start

    return finish  # type: ignore[no-any-return]


@cache
def exact_fallback(storage: Storage, encode: Encoder, base_of: Decoder) -> Callable[..., Any]:
    """Return the loop that finishes a block of an exact total by long division, whatever its level."""
    round_once, base_value, store, low, high = encode.round, base_of.value, encode.store, encode.low, encode.high
    is_integer, precision, lowest = not storage.is_float, storage.precision, storage.lowest

    @device_function
    def divide_elements(digits, level, count, limbs, exponent, target, base, work):  # type: ignore[no-untyped-def]
        # With a base of floats, the quotient is rounded to float64, added in float64, and the sum is rounded. Integers
        # are rounded before the base is added.
        has_float_base = base != np.uint64(0) and not is_integer
        bits, step = (53, -1074) if has_float_base else (precision, lowest)
        for i in range(count):
            upper, lower = carried(digits, i)
            value = nearest(upper, lower, level, limbs, exponent, bits, step, work)
            if base != np.uint64(0):
                value += np.float64(base_value(base, np.float32(1.0), i))
            if has_float_base:
                value = round_once(value)
            if not low <= value <= high:
                return i
            store(target, i, value + 0.0)
        return -1

    return divide_elements  # type: ignore[no-any-return]
