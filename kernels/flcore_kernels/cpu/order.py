"""The kernels of order statistics: medians and trimmed means of columns, over the clients.

Each kernel works on tiles: a row of keys per client, which lies in the first-level cache. The rows are sorted by the
steps of a `Program`, and the result is taken from the sorted rows. Nothing is subtracted from a sum, and sums are in
float64 in the order of the values. So a result depends on the values and weights of its column alone.

With weights, a key's tag is the number of its client. A client's weight is an integer.
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
from flcore_kernels.order import VECTOR_BYTES
from flcore_kernels.order_program import BLOCK_ROWS, MERGE, MIDDLE

WORK_ROWS = 8
"""Rows of 8 bytes per column beside a tile's keys and tags."""

LARGE, SMALLER = 2.0**900, 2.0**-200
"""Values of a column with a magnitude from `LARGE` on are summed as multiples of 1 / `SMALLER`: their sum, or that of
their products with weights, may be beyond float64's range."""

_PUTS = {2: memory.put_i16, 4: memory.put_i32, 8: memory.put_i64}
_INTEGERS = {2: np.int16, 4: np.int32, 8: np.int64}
_TAGS = {2: memory.load_u16, 4: memory.load_u32, 8: memory.load_u64}

_U64, _I64 = types.uint64, types.int64
_ADDRESSES, _NUMBERS, _STEPS = types.Array(_U64, 1, "C"), types.Array(_I64, 1, "C"), types.Array(_I64, 2, "C")


def key_bytes(dtype: str) -> int:
    """Return the size of a key of a dtype: 2, 4 or 8. Keys of one byte have two, because tags need them."""
    return max(2, STORAGE[dtype].dtype.itemsize)


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
def weighted_median_kernel(dtype: str, result: str) -> Kernel:
    """Return the kernel of weighted medians. It takes the clients' weights and, to be uniform, 0."""
    signature = types.void(*_tile_signature(), _NUMBERS, _I64, _U64)
    return Kernel(f"weighted-median-{dtype}-{result}", signature, lambda: _weighted_median(dtype, result))


@cache
def weighted_trimmed_mean_kernel(dtype: str, result: str) -> Kernel:
    """Return the kernel of weighted trimmed means. It takes the clients' weights, and the weight to cut per side."""
    signature = types.void(*_tile_signature(), _NUMBERS, _I64, _U64)
    return Kernel(f"weighted-trimmed-mean-{dtype}-{result}", signature, lambda: _weighted_trimmed_mean(dtype, result))


def _tile_signature() -> tuple[Any, ...]:
    """Operands, first and last element, steps, rows and first client's row of a program, elements of a tile, target."""
    return _ADDRESSES, _I64, _I64, _STEPS, _I64, _I64, _I64, _U64


@cache
def _sorted_tile(dtype: str, *, has_tags: bool) -> Callable[..., Any]:
    """Return the loop that fills a tile with the keys of some elements of all operands, and sorts it."""
    size, width = STORAGE[dtype].dtype.itemsize, key_bytes(dtype)
    bits, (mask, flip) = 8 * width, _key_masks(dtype)
    is_signed = STORAGE[dtype].dtype.kind != "u" or STORAGE[dtype].is_float
    to_keys = keying(8 * size, bits, mask, flip, is_signed=is_signed)
    sort, merge = sorting(bits, has_tags=has_tags), merging(bits, has_tags=has_tags)
    exchange, find_middle = exchanging(bits, has_tags=has_tags), middle(bits)
    put, number = _PUTS[width], _INTEGERS[width]
    lowest, highest = np.int64(-(1 << (bits - 1))), np.int64((1 << (bits - 1)) - 1)
    lanes = VECTOR_BYTES // width
    vector = np.uint64(VECTOR_BYTES)

    @device_function
    def fill(operands: Any, offset: Any, count: Any, first_row: Any, rows: Any, tile: Any, keys: Any, tags: Any) -> Any:
        row_bytes, clients = np.uint64(tile * width), operands.size
        spare = tags + np.uint64(rows * tile * width if has_tags else 0)
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
                    put(there, i, number(min(client, clients)))
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
        operands: Any, offset: Any, count: Any, steps: Any, rows: Any, first_row: Any, tile: Any, keys: Any
    ) -> Any:
        """Return the address behind the tile's keys and tags."""
        tile_bytes = np.uint64(rows * tile * width)
        used = fill(operands, offset, count, first_row, rows, tile, keys, keys + tile_bytes)
        sort_rows(steps, used, np.uint64(tile * width), keys, tile_bytes)
        return keys + tile_bytes * np.uint64(2 if has_tags else 1)

    return sorted_tile  # type: ignore[no-any-return]


def _key_masks(dtype: str) -> tuple[int, int]:
    """Return what is flipped of a negative float's bits, and of all bits of an unsigned integer, to make a key."""
    storage = STORAGE[dtype]
    if storage.is_float:
        return storage.magnitude_mask, 0
    is_wide_unsigned = storage.dtype.kind == "u" and storage.dtype.itemsize > 1
    return 0, -(1 << (8 * storage.dtype.itemsize - 1)) if is_wide_unsigned else 0


@cache
def _stored_row(dtype: str) -> Callable[..., Any]:
    """Return the loop that turns a row of keys back into stored elements: `stored_row(keys, count, target)`."""
    size, width = STORAGE[dtype].dtype.itemsize, key_bytes(dtype)
    from_keys, lanes = unkeying(8 * size, 8 * width, *_key_masks(dtype)), VECTOR_BYTES // width

    @device_function
    def stored_row(keys: Any, count: Any, target: Any) -> None:
        for i in range(0, count, lanes):
            from_keys(keys + np.uint64(i * width), target + np.uint64(i * size))

    return stored_row  # type: ignore[no-any-return]


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
    sorted_tile, stored_row, width = _sorted_tile(dtype, has_tags=False), _stored_row(dtype), key_bytes(dtype)
    value, write = DECODERS[dtype].value, _writing(result)

    def median(operands, first, last, steps, rows, first_row, tile, keys, low, high, target):  # type: ignore[no-untyped-def]
        row_bytes, one = np.uint64(tile * width), np.float32(1.0)
        for offset in range(first, last, tile):
            count = min(tile, last - offset)
            work = sorted_tile(operands, offset, count, steps, rows, first_row, tile, keys)
            lower, upper = work, work + np.uint64(8 * tile)
            stored_row(keys + np.uint64(low) * row_bytes, count, lower)
            stored_row(keys + np.uint64(high) * row_bytes, count, upper)
            for i in range(count):
                middle_value = mean_of_two(np.float64(value(lower, one, i)), np.float64(value(upper, one, i)))
                write(target, offset + i, middle_value)

    return median


def _trimmed_mean(dtype: str, result: str) -> Callable[..., Any]:
    sorted_tile, stored_row, width = _sorted_tile(dtype, has_tags=False), _stored_row(dtype), key_bytes(dtype)
    value, write, is_wide = DECODERS[dtype].value, _writing(result), dtype == "float64"

    def trimmed_mean(operands, first, last, steps, rows, first_row, tile, keys, begin, end, target):  # type: ignore[no-untyped-def]
        row_bytes, one = np.uint64(tile * width), np.float32(1.0)
        for offset in range(first, last, tile):
            count = min(tile, last - offset)
            work = sorted_tile(operands, offset, count, steps, rows, first_row, tile, keys)
            lower, upper, held = work, work + np.uint64(8 * tile), work + np.uint64(16 * tile)
            stored_row(keys + np.uint64(begin) * row_bytes, count, lower)
            stored_row(keys + np.uint64(end - 1) * row_bytes, count, upper)
            here, sums, scales = held, held + np.uint64(8 * tile), held + np.uint64(16 * tile)
            for i in range(count):
                top = max(np.abs(np.float64(value(lower, one, i))), np.abs(np.float64(value(upper, one, i))))
                memory.store_f64(sums, i, 0.0)
                memory.store_f64(scales, i, SMALLER if is_wide and top >= LARGE else 1.0)
            for row in range(begin, end):
                stored_row(keys + np.uint64(row) * row_bytes, count, here)
                for i in range(count):
                    term = np.float64(value(here, one, i)) * memory.peek_f64(scales, i)
                    memory.store_f64(sums, i, memory.peek_f64(sums, i) + term)
            for i in range(count):
                mean = memory.peek_f64(sums, i) / np.float64(end - begin) / memory.peek_f64(scales, i)
                # A mean is not outside its values. So equal values have that value as their mean, without roundings.
                mean = min(max(mean, np.float64(value(lower, one, i))), np.float64(value(upper, one, i)))
                write(target, offset + i, mean)

    return trimmed_mean


def _weighted_median(dtype: str, result: str) -> Callable[..., Any]:
    sorted_tile, stored_row, width = _sorted_tile(dtype, has_tags=True), _stored_row(dtype), key_bytes(dtype)
    value, write, load_tag = DECODERS[dtype].value, _writing(result), _TAGS[width]

    def median(operands, first, last, steps, rows, first_row, tile, keys, weights, cut, target):  # type: ignore[no-untyped-def]
        row_bytes, one, total = np.uint64(tile * width), np.float32(1.0), weights.sum()
        for offset in range(first, last, tile):
            count = min(tile, last - offset)
            work = sorted_tile(operands, offset, count, steps, rows, first_row, tile, keys)
            here, before = work, work + np.uint64(8 * tile)
            lower, upper = work + np.uint64(16 * tile), work + np.uint64(24 * tile)
            for i in range(count):
                memory.store_i64(before, i, np.int64(0))
                memory.store_f64(lower, i, 0.0)
                memory.store_f64(upper, i, 0.0)
            for row in range(rows):
                stored_row(keys + np.uint64(row) * row_bytes, count, here)
                tags = keys + np.uint64(rows + row) * row_bytes
                for i in range(count):
                    reached = memory.peek_i64(before, i)
                    reaches = reached + weights[np.uint64(load_tag(tags, i))]
                    found = np.float64(value(here, one, i))
                    # Two of these are true of each column: of one row, or of two where the half is a border.
                    is_lower = (2 * reached < total) & (2 * reaches >= total)
                    is_upper = (2 * reached <= total) & (2 * reaches > total)
                    memory.store_i64(before, i, reaches)
                    memory.store_f64(lower, i, found if is_lower else memory.peek_f64(lower, i))
                    memory.store_f64(upper, i, found if is_upper else memory.peek_f64(upper, i))
            for i in range(count):
                write(target, offset + i, mean_of_two(memory.peek_f64(lower, i), memory.peek_f64(upper, i)))

    return median


def _weighted_trimmed_mean(dtype: str, result: str) -> Callable[..., Any]:
    sorted_tile, stored_row, width = _sorted_tile(dtype, has_tags=True), _stored_row(dtype), key_bytes(dtype)
    value, write, load_tag, is_wide = DECODERS[dtype].value, _writing(result), _TAGS[width], dtype == "float64"

    def trimmed_mean(operands, first, last, steps, rows, first_row, tile, keys, weights, cut, target):  # type: ignore[no-untyped-def]
        row_bytes, one, total = np.uint64(tile * width), np.float32(1.0), weights.sum()
        kept = np.float64(total - 2 * cut)
        for offset in range(first, last, tile):
            count = min(tile, last - offset)
            work = sorted_tile(operands, offset, count, steps, rows, first_row, tile, keys)
            here, after, before = work, work + np.uint64(8 * tile), work + np.uint64(16 * tile)
            lower, upper = work + np.uint64(24 * tile), work + np.uint64(32 * tile)
            sums, equal, scales = work + np.uint64(40 * tile), work + np.uint64(48 * tile), work + np.uint64(56 * tile)
            stored_row(keys, count, here)
            stored_row(keys + np.uint64(operands.size - 1) * row_bytes, count, after)
            for i in range(count):
                top = max(np.abs(np.float64(value(here, one, i))), np.abs(np.float64(value(after, one, i))))
                memory.store_f64(scales, i, SMALLER if is_wide and top >= LARGE else 1.0)
                memory.store_i64(before, i, np.int64(0))
                memory.store_i64(equal, i, np.int64(0))
                memory.store_f64(lower, i, np.inf)
                memory.store_f64(upper, i, -np.inf)
                memory.store_f64(sums, i, 0.0)
            for row in range(rows):
                stored_row(keys + np.uint64(row) * row_bytes, count, here)
                stored_row(keys + np.uint64(min(row + 1, rows - 1)) * row_bytes, count, after)
                tags = keys + np.uint64(rows + row) * row_bytes
                for i in range(count):
                    reached = memory.peek_i64(before, i)
                    reaches = reached + weights[np.uint64(load_tag(tags, i))]
                    counted = max(np.int64(0), min(reaches, total - cut) - max(reached, cut))
                    found = np.float64(value(here, one, i))
                    merged = memory.peek_i64(equal, i) + counted
                    # Equal values are one term, with the sum of their weights. So their order does not matter.
                    is_last = (found != np.float64(value(after, one, i))) | (row == rows - 1)
                    term = np.float64(merged) * (found * memory.peek_f64(scales, i)) if is_last and merged > 0 else 0.0
                    memory.store_i64(before, i, reaches)
                    memory.store_i64(equal, i, np.int64(0) if is_last else merged)
                    memory.store_f64(sums, i, memory.peek_f64(sums, i) + term)
                    memory.store_f64(lower, i, min(memory.peek_f64(lower, i), found if counted > 0 else np.inf))
                    memory.store_f64(upper, i, max(memory.peek_f64(upper, i), found if counted > 0 else -np.inf))
            for i in range(count):
                mean = memory.peek_f64(sums, i) / kept / memory.peek_f64(scales, i)
                write(target, offset + i, min(max(mean, memory.peek_f64(lower, i)), memory.peek_f64(upper, i)))

    return trimmed_mean
