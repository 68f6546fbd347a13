"""The kernels of order statistics: medians and trimmed means of columns, over the clients.

Each kernel works on tiles: a row of keys per client, which lies in the first-level cache. The rows are sorted by the
steps of a `Program`, and the result is taken from the sorted rows. Nothing is subtracted from a sum, and sums are in
float64 in the order of the values. So a result depends on the values and weights of its column alone.

With weights, a key's tag is the weight of its client, an integer of at most 2^30, and keys of 16 bits have 32.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from numba import types

from flcore_kernels.cpu import memory
from flcore_kernels.cpu.compiler import Kernel
from flcore_kernels.cpu.decode import DECODERS
from flcore_kernels.cpu.device_function import device_function
from flcore_kernels.cpu.encode import ENCODERS
from flcore_kernels.cpu.row_networks import exchanging, keying, merging, middle, sorting, unkeying
from flcore_kernels.dtypes import STORAGE
from flcore_kernels.order_program import BLOCK_ROWS, MERGE, MIDDLE
from flcore_kernels.scratch import VECTOR_BYTES

WORK_ROWS = 9
"""Rows of 8 bytes per column beside a tile's keys and tags."""

LARGE, SMALLER = 2.0**900, 2.0**-200
"""Values of a column with a magnitude from `LARGE` on are summed as multiples of 1 / `SMALLER`: their sum, or that of
their products with weights, may be beyond float64's range."""

_PUTS = {2: memory.put_i16, 4: memory.put_i32, 8: memory.put_i64}
_INTEGERS = {2: np.int16, 4: np.int32, 8: np.int64}

_U64, _I64 = types.uint64, types.int64
_ADDRESSES, _NUMBERS, _STEPS = types.Array(_U64, 1, "C"), types.Array(_I64, 1, "C"), types.Array(_I64, 2, "C")


def key_bytes(dtype: str, *, has_tags: bool) -> int:
    """Return the size of a key of a dtype: 2, 4 or 8, and 4 or 8 with tags."""
    return max(4 if has_tags else 2, STORAGE[dtype].dtype.itemsize)


@cache
def median_kernel(dtype: str, result: str) -> Kernel:
    """Return the kernel of medians. It takes the two middle rows of a sorted tile."""
    signature = types.void(*_tile_signature(), _I64, _I64, _U64)
    return Kernel(f"median-{dtype}-{result}", signature, lambda: _median(dtype, result))


@cache
def trimmed_mean_kernel(dtype: str, result: str) -> Kernel:
    """Return the kernel of means of some rows of a sorted tile: from one row up to another one, which is left out."""
    signature = types.void(*_tile_signature(), _I64, _I64, _U64)
    return Kernel(f"trimmed-mean-{dtype}-{result}", signature, lambda: _trimmed_mean(dtype, result))


@cache
def mean_around_median_kernel(dtype: str, result: str) -> Kernel:
    """Return the kernel of means around the median: middle rows of a sorted tile, number of rows, rows kept."""
    signature = types.void(*_tile_signature(), _I64, _I64, _I64, _I64, _U64)
    return Kernel(f"mean-around-median-{dtype}-{result}", signature, lambda: _mean_around_median(dtype, result))


@cache
def weighted_median_kernel(dtype: str, result: str) -> Kernel:
    """Return the kernel of weighted medians. It takes the clients' weights and their sum."""
    signature = types.void(*_tile_signature(), _NUMBERS, _I64, _U64)
    return Kernel(f"weighted-median-{dtype}-{result}", signature, lambda: _weighted_median(dtype, result))


@cache
def weighted_trimmed_mean_kernel(dtype: str, result: str) -> Kernel:
    """Return the kernel of weighted trimmed means. It takes weights, and the reached weights that count."""
    signature = types.void(*_tile_signature(), _NUMBERS, _I64, _I64, _U64)
    return Kernel(f"weighted-trimmed-mean-{dtype}-{result}", signature, lambda: _weighted_trimmed_mean(dtype, result))


def _tile_signature() -> tuple[Any, ...]:
    """Operands, first and last element, steps, rows and first client's row of a program, elements of a tile, target."""
    return _ADDRESSES, _I64, _I64, _STEPS, _I64, _I64, _I64, _U64


@cache
def _sorted_tile(dtype: str, *, has_tags: bool) -> Callable[..., Any]:
    """Return the loop that fills a tile with the keys of some elements of all operands, and sorts it."""
    size, width = STORAGE[dtype].dtype.itemsize, key_bytes(dtype, has_tags=has_tags)
    bits, (mask, flip) = 8 * width, _key_masks(dtype, width)
    is_signed = STORAGE[dtype].dtype.kind != "u" or STORAGE[dtype].is_float
    to_keys = keying(8 * size, bits, mask, flip, is_signed=is_signed)
    sort, merge = sorting(bits, has_tags=has_tags), merging(bits, has_tags=has_tags)
    exchange, find_middle = exchanging(bits, has_tags=has_tags), middle(bits)
    put, number = _PUTS[width], _INTEGERS[width]
    lowest, highest = np.int64(-(1 << (bits - 1))), np.int64((1 << (bits - 1)) - 1)
    lanes = VECTOR_BYTES // width
    vector = np.uint64(VECTOR_BYTES)

    @device_function
    def fill(
        operands: Any, weights: Any, offset: Any, count: Any, first_row: Any, rows: Any, tile: Any, keys: Any
    ) -> Any:
        row_bytes, clients = np.uint64(tile * width), operands.size
        tags = keys + np.uint64(rows) * row_bytes
        spare = tags + np.uint64(rows if has_tags else 0) * row_bytes
        padded = (count + lanes - 1) // lanes * lanes
        for row in range(rows):
            here = keys + np.uint64(row) * row_bytes
            client = row - first_row
            if 0 <= client < clients:
                source = operands[client] + np.uint64(offset * size)
                for i in range(0, count - lanes + 1, lanes):
                    memory.prefetch(source + np.uint64((i + tile) * size))
                    to_keys(source + np.uint64(i * size), here + np.uint64(i * width))
                whole = count // lanes * lanes
                if whole < count:
                    for i in range((count - whole) * size):
                        memory.put_i8(spare, i, memory.load_i8(source + np.uint64(whole * size), i))
                    to_keys(spare, here + np.uint64(whole * width))
            else:
                for i in range(padded):
                    put(here, i, number(lowest if client < 0 else highest))
            if has_tags:
                there = tags + np.uint64(row) * row_bytes
                for i in range(padded):
                    put(there, i, number(weights[client] if client < clients else 0))
        return np.uint64(padded * width)

    @device_function
    def sort_rows(steps: Any, used: Any, row_bytes: Any, keys: Any, tag_bytes: Any) -> None:
        for step in range(steps.shape[0]):
            kind = steps[step, 0]
            here = keys + np.uint64(steps[step, 1]) * row_bytes
            there = keys + np.uint64(steps[step, 2]) * row_bytes
            along = np.uint64(0)
            while along < used:
                if kind == MERGE:
                    merge(here + along, row_bytes, tag_bytes)
                elif kind <= BLOCK_ROWS and kind > 1:
                    sort(here + along, kind, row_bytes, tag_bytes)
                elif kind == MIDDLE:
                    if not has_tags:
                        find_middle(here + along, there + along, row_bytes)
                else:
                    for row in range(BLOCK_ROWS):
                        exchange(
                            here + along + np.uint64(row) * row_bytes,
                            there + along + np.uint64(BLOCK_ROWS - 1 - row) * row_bytes,
                            tag_bytes,
                        )
                along += vector

    @device_function
    def sorted_tile(
        operands: Any,
        weights: Any,
        offset: Any,
        count: Any,
        steps: Any,
        rows: Any,
        first_row: Any,
        tile: Any,
        keys: Any,
    ) -> Any:
        """Return the address behind the tile's keys and tags."""
        tile_bytes = np.uint64(rows * tile * width)
        used = fill(operands, weights, offset, count, first_row, rows, tile, keys)
        sort_rows(steps, used, np.uint64(tile * width), keys, tile_bytes)
        return keys + tile_bytes * np.uint64(2 if has_tags else 1)

    return sorted_tile  # type: ignore[no-any-return]


def _key_masks(dtype: str, width: int) -> tuple[int, int]:
    """Return what is flipped of a negative float's bits, and of all bits of an unsigned integer, to make a key."""
    storage = STORAGE[dtype]
    if storage.is_float:
        return storage.magnitude_mask, 0
    return 0, -(1 << (8 * width - 1)) if storage.dtype.kind == "u" and storage.dtype.itemsize == width else 0


@cache
def _value_row(dtype: str, *, has_tags: bool) -> Callable[..., Any]:
    """Return the loop that writes the values of a row of keys as float64: `value_row(keys, count, spare, target)`."""
    size, width = STORAGE[dtype].dtype.itemsize, key_bytes(dtype, has_tags=has_tags)
    from_keys, lanes = unkeying(8 * size, 8 * width, *_key_masks(dtype, width)), VECTOR_BYTES // width
    value = DECODERS[dtype].value

    @device_function
    def value_row(keys: Any, count: Any, spare: Any, target: Any) -> None:
        for i in range(0, count, lanes):
            from_keys(keys + np.uint64(i * width), spare + np.uint64(i * size))
        for i in range(count):
            memory.store_f64(target, i, np.float64(value(spare, np.float32(1.0), i)))

    return value_row  # type: ignore[no-any-return]


@device_function
def mean_of_two(one: Any, other: Any) -> Any:
    """Return the mean of two float64, rounded once: a sum is only halved inexactly where it is exact itself.

    For narrower dtypes, float64 has more than twice their digits and two more, so rounding its result to the dtype is
    rounding once (Figueroa, 1995). A sum beyond the range is a sum of halves instead, which are exact there.
    """
    half = (one + other) * 0.5
    return half if np.abs(half) < np.inf else one * 0.5 + other * 0.5


@cache
def _writing(result: str) -> Callable[..., Any]:
    """Return the function that rounds a float64 once and writes it: `write(address, index, value)`."""
    round_once, store = ENCODERS[result].round, ENCODERS[result].store

    @device_function
    def write(address: Any, index: Any, value: Any) -> None:
        store(address, index, np.copysign(round_once(value), value))  # rounding may lose the sign of a zero

    return write  # type: ignore[no-any-return]


def _median(dtype: str, result: str) -> Callable[..., Any]:
    sorted_tile, value_row = _sorted_tile(dtype, has_tags=False), _value_row(dtype, has_tags=False)
    width, write = key_bytes(dtype, has_tags=False), _writing(result)

    def median(operands, first, last, steps, rows, first_row, tile, keys, low, high, target):  # type: ignore[no-untyped-def]
        row_bytes, work_bytes = np.uint64(tile * width), np.uint64(8 * tile)
        for offset in range(first, last, tile):
            count = min(tile, last - offset)
            spare = sorted_tile(operands, operands, offset, count, steps, rows, first_row, tile, keys)
            lower, upper = spare + work_bytes, spare + work_bytes + work_bytes
            value_row(keys + np.uint64(low) * row_bytes, count, spare, lower)
            value_row(keys + np.uint64(high) * row_bytes, count, spare, upper)
            for i in range(count):
                write(target, offset + i, mean_of_two(memory.peek_f64(lower, i), memory.peek_f64(upper, i)))

    return median


@device_function
def scale_sums(lower: Any, upper: Any, count: Any, scales: Any) -> None:
    """Write the scale of each column's sum, which follows from its smallest and its largest value."""
    for i in range(count):
        top = max(np.abs(memory.peek_f64(lower, i)), np.abs(memory.peek_f64(upper, i)))
        memory.store_f64(scales, i, SMALLER if top >= LARGE else 1.0)


def _trimmed_mean(dtype: str, result: str) -> Callable[..., Any]:
    sorted_tile, value_row = _sorted_tile(dtype, has_tags=False), _value_row(dtype, has_tags=False)
    width, write, is_wide = key_bytes(dtype, has_tags=False), _writing(result), dtype == "float64"

    def trimmed_mean(operands, first, last, steps, rows, first_row, tile, keys, begin, end, target):  # type: ignore[no-untyped-def]
        row_bytes, work_bytes, kept = np.uint64(tile * width), np.uint64(8 * tile), np.float64(end - begin)
        for offset in range(first, last, tile):
            count = min(tile, last - offset)
            spare = sorted_tile(operands, operands, offset, count, steps, rows, first_row, tile, keys)
            lower, upper = spare + work_bytes, spare + np.uint64(2) * work_bytes
            here, sums, scales = (
                upper + work_bytes,
                upper + np.uint64(2) * work_bytes,
                upper + np.uint64(3) * work_bytes,
            )
            value_row(keys + np.uint64(begin) * row_bytes, count, spare, lower)
            value_row(keys + np.uint64(end - 1) * row_bytes, count, spare, upper)
            if is_wide:
                scale_sums(lower, upper, count, scales)
            for i in range(count):
                memory.store_f64(sums, i, -0.0)  # a sum of -0.0 stays -0.0
            for row in range(begin, end):
                value_row(keys + np.uint64(row) * row_bytes, count, spare, here)
                for i in range(count):
                    term = memory.peek_f64(here, i) * (memory.peek_f64(scales, i) if is_wide else 1.0)
                    memory.store_f64(sums, i, memory.peek_f64(sums, i) + term)
            for i in range(count):
                mean = memory.peek_f64(sums, i) / kept / (memory.peek_f64(scales, i) if is_wide else 1.0)
                # A mean is not outside its values. So equal values have that value as their mean, without roundings.
                write(target, offset + i, min(max(mean, memory.peek_f64(lower, i)), memory.peek_f64(upper, i)))

    return trimmed_mean


def _mean_around_median(dtype: str, result: str) -> Callable[..., Any]:
    sorted_tile, value_row = _sorted_tile(dtype, has_tags=False), _value_row(dtype, has_tags=False)
    width, write, is_wide = key_bytes(dtype, has_tags=False), _writing(result), dtype == "float64"

    def mean_around_median(  # type: ignore[no-untyped-def]
        operands, first, last, steps, rows, first_row, tile, keys, low, high, clients, kept, target
    ):
        row_bytes, work_bytes = np.uint64(tile * width), np.uint64(8 * tile)
        for offset in range(first, last, tile):
            count = min(tile, last - offset)
            spare = sorted_tile(operands, operands, offset, count, steps, rows, first_row, tile, keys)
            lower, upper = spare + work_bytes, spare + np.uint64(2) * work_bytes
            here, there = spare + np.uint64(3) * work_bytes, spare + np.uint64(4) * work_bytes
            sums, scales = spare + np.uint64(5) * work_bytes, spare + np.uint64(6) * work_bytes
            middle, starts = spare + np.uint64(7) * work_bytes, spare + np.uint64(8) * work_bytes
            value_row(keys, count, spare, lower)
            value_row(keys + np.uint64(clients - 1) * row_bytes, count, spare, upper)
            if is_wide:
                scale_sums(lower, upper, count, scales)
            value_row(keys + np.uint64(low) * row_bytes, count, spare, here)
            value_row(keys + np.uint64(high) * row_bytes, count, spare, there)
            for i in range(count):
                memory.store_f64(middle, i, mean_of_two(memory.peek_f64(here, i), memory.peek_f64(there, i)))
                memory.store_f64(starts, i, 0.0)
                memory.store_f64(sums, i, -0.0)  # a sum of -0.0 stays -0.0
            # The kept values are neighbours in the order of values: the first one is left for the one behind the last,
            # as long as that is nearer to the median.
            for row in range(clients - kept):
                value_row(keys + np.uint64(row) * row_bytes, count, spare, here)
                value_row(keys + np.uint64(row + kept) * row_bytes, count, spare, there)
                for i in range(count):
                    centre = memory.peek_f64(middle, i) * 0.5  # halves cannot overflow
                    is_farther = centre - memory.peek_f64(here, i) * 0.5 > memory.peek_f64(there, i) * 0.5 - centre
                    memory.store_f64(starts, i, memory.peek_f64(starts, i) + (1.0 if is_farther else 0.0))
            for row in range(clients):
                value_row(keys + np.uint64(row) * row_bytes, count, spare, here)
                for i in range(count):
                    place = row - memory.peek_f64(starts, i)
                    value = memory.peek_f64(here, i)
                    term = value * (memory.peek_f64(scales, i) if is_wide else 1.0)
                    memory.store_f64(
                        sums, i, memory.peek_f64(sums, i) + (term if (place >= 0.0) & (place < kept) else -0.0)
                    )
                    memory.store_f64(lower, i, value if place == 0.0 else memory.peek_f64(lower, i))
                    memory.store_f64(upper, i, value if place == kept - 1.0 else memory.peek_f64(upper, i))
            for i in range(count):
                mean = memory.peek_f64(sums, i) / kept / (memory.peek_f64(scales, i) if is_wide else 1.0)
                write(target, offset + i, min(max(mean, memory.peek_f64(lower, i)), memory.peek_f64(upper, i)))

    return mean_around_median


@cache
def _adding(width: int) -> Callable[..., Any]:
    """Return the loop that adds a row of tags to the weight that is reached in each column, exactly: below 2^53."""
    load = memory.load_i32 if width == 4 else memory.load_i64

    @device_function
    def add_weights(tags: Any, count: Any, reached: Any) -> None:
        for i in range(count):
            memory.store_f64(reached, i, memory.peek_f64(reached, i) + np.float64(load(tags, i)))

    return add_weights  # type: ignore[no-any-return]


@device_function
def find_from(values: Any, reached: Any, weight: Any, count: Any, found: Any) -> None:
    """Lower each column's `found` to a row's value, where a weight is reached. The first one stays, as rows ascend."""
    for i in range(count):
        value = memory.peek_f64(values, i) if memory.peek_f64(reached, i) >= weight else np.inf
        memory.store_f64(found, i, min(memory.peek_f64(found, i), value))


def _weighted_median(dtype: str, result: str) -> Callable[..., Any]:
    sorted_tile, value_row = _sorted_tile(dtype, has_tags=True), _value_row(dtype, has_tags=True)
    width, write, is_float = key_bytes(dtype, has_tags=True), _writing(result), STORAGE[dtype].is_float
    add_weights = _adding(width)

    def median(operands, first, last, steps, rows, first_row, tile, keys, weights, total, target):  # type: ignore[no-untyped-def]
        row_bytes, work_bytes = np.uint64(tile * width), np.uint64(8 * tile)
        # Sums of weights are integers: from the first one on, half of the weight is reached; from the second, exceeded.
        reaching, exceeding = np.float64((total + 1) // 2), np.float64(total // 2 + 1)
        valued = operands.size if is_float else rows  # padding may lie before the largest integer
        for offset in range(first, last, tile):
            count = min(tile, last - offset)
            spare = sorted_tile(operands, weights, offset, count, steps, rows, first_row, tile, keys)
            here, reached = spare + work_bytes, spare + np.uint64(2) * work_bytes
            lower, upper = reached + work_bytes, reached + np.uint64(2) * work_bytes
            for i in range(count):
                memory.store_f64(reached, i, 0.0)
                memory.store_f64(lower, i, np.inf)
                memory.store_f64(upper, i, np.inf)
            for row in range(valued):
                value_row(keys + np.uint64(row) * row_bytes, count, spare, here)
                add_weights(keys + np.uint64(rows + row) * row_bytes, count, reached)
                find_from(here, reached, reaching, count, lower)
                find_from(here, reached, exceeding, count, upper)
            for i in range(count):
                write(target, offset + i, mean_of_two(memory.peek_f64(lower, i), memory.peek_f64(upper, i)))

    return median


def _weighted_trimmed_mean(dtype: str, result: str) -> Callable[..., Any]:
    sorted_tile, value_row = _sorted_tile(dtype, has_tags=True), _value_row(dtype, has_tags=True)
    width, write, is_float = key_bytes(dtype, has_tags=True), _writing(result), STORAGE[dtype].is_float
    add_weights = _adding(width)
    is_wide = dtype == "float64"

    def trimmed_mean(operands, first, last, steps, rows, first_row, tile, keys, weights, low, high, target):  # type: ignore[no-untyped-def]
        row_bytes, work_bytes = np.uint64(tile * width), np.uint64(8 * tile)
        begin, end, last_row = np.float64(low), np.float64(high), operands.size - 1 if is_float else rows - 1
        for offset in range(first, last, tile):
            count = min(tile, last - offset)
            spare = sorted_tile(operands, weights, offset, count, steps, rows, first_row, tile, keys)
            here, after, reached = (
                spare + work_bytes,
                spare + np.uint64(2) * work_bytes,
                spare + np.uint64(3) * work_bytes,
            )
            lower, upper = reached + work_bytes, reached + np.uint64(2) * work_bytes
            equal, sums, scales = (
                upper + work_bytes,
                upper + np.uint64(2) * work_bytes,
                upper + np.uint64(3) * work_bytes,
            )
            value_row(keys, count, spare, here)
            value_row(keys + np.uint64(last_row) * row_bytes, count, spare, after)
            if is_wide:
                scale_sums(here, after, count, scales)
            for i in range(count):
                memory.store_f64(reached, i, 0.0)
                memory.store_f64(equal, i, 0.0)
                memory.store_f64(sums, i, -0.0)  # a sum of -0.0 stays -0.0
            for i in range(count):
                memory.store_f64(lower, i, np.inf)
                memory.store_f64(upper, i, np.inf)
            for row in range(last_row + 1):
                value_row(keys + np.uint64(row) * row_bytes, count, spare, here)
                value_row(keys + np.uint64(min(row + 1, last_row)) * row_bytes, count, spare, after)
                for i in range(count):  # without this row's weight, then with it
                    counted = max(begin, min(memory.peek_f64(reached, i), end))
                    memory.store_f64(equal, i, memory.peek_f64(equal, i) - counted)
                add_weights(keys + np.uint64(rows + row) * row_bytes, count, reached)
                for i in range(count):
                    counted = max(begin, min(memory.peek_f64(reached, i), end))
                    memory.store_f64(equal, i, memory.peek_f64(equal, i) + counted)
                find_from(here, reached, begin + 1.0, count, lower)
                find_from(here, reached, end, count, upper)
                # Equal values are one term, with the sum of their weights. So their order does not matter.
                for i in range(count):
                    is_last = (memory.peek_f64(here, i) != memory.peek_f64(after, i)) | (row == last_row)
                    value = memory.peek_f64(here, i) * (memory.peek_f64(scales, i) if is_wide else 1.0)
                    term = memory.peek_f64(equal, i) * value if is_last else -0.0
                    memory.store_f64(sums, i, memory.peek_f64(sums, i) + term)
                for i in range(count):
                    is_last = (memory.peek_f64(here, i) != memory.peek_f64(after, i)) | (row == last_row)
                    memory.store_f64(equal, i, 0.0 if is_last else memory.peek_f64(equal, i))
            for i in range(count):
                mean = memory.peek_f64(sums, i) / (end - begin) / (memory.peek_f64(scales, i) if is_wide else 1.0)
                write(target, offset + i, min(max(mean, memory.peek_f64(lower, i)), memory.peek_f64(upper, i)))

    return trimmed_mean
