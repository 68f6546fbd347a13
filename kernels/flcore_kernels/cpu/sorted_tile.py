"""A tile of columns, sorted over the clients: what the kernels of order statistics share.

A tile is a row of keys per client, which lies in the first-level cache. A key is a signed integer in the order of its
value. With weights, a key's tag is the weight of its client, an integer of at most 2^30, and keys of 16 bits have 32.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np

from flcore_kernels.cpu import memory
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


def key_bytes(dtype: str, *, has_tags: bool) -> int:
    """Return the size of a key of a dtype: 2, 4 or 8, and 4 or 8 with tags."""
    return max(4 if has_tags else 2, STORAGE[dtype].dtype.itemsize)


@cache
def tile_sorter(dtype: str, *, has_tags: bool) -> Callable[..., Any]:
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
def row_reader(dtype: str, *, has_tags: bool) -> Callable[..., Any]:
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
def result_writer(result: str) -> Callable[..., Any]:
    """Return the function that rounds a float64 once and writes it: `write(address, index, value)`."""
    round_once, store = ENCODERS[result].round, ENCODERS[result].store

    @device_function
    def write(address: Any, index: Any, value: Any) -> None:
        store(address, index, np.copysign(round_once(value), value))  # rounding may lose the sign of a zero

    return write  # type: ignore[no-any-return]


@device_function
def scale_sums(lower: Any, upper: Any, count: Any, scales: Any) -> None:
    """Write the scale of each column's sum, which follows from its smallest and its largest value."""
    for i in range(count):
        top = max(np.abs(memory.peek_f64(lower, i)), np.abs(memory.peek_f64(upper, i)))
        memory.store_f64(scales, i, SMALLER if top >= LARGE else 1.0)
