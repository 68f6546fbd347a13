"""The kernels of order statistics: medians and trimmed means of columns, over the clients.

Each kernel works on tiles (see `sorted_tile`). The rows of a tile are sorted by the steps of a `Program`, and the
result is taken from the sorted rows. Nothing is subtracted from a sum, and sums are in float64 in the order of the
values. So a result depends on the values and weights of its column alone.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from numba import types

from flcore_kernels.cpu import memory
from flcore_kernels.cpu.compiler import Kernel
from flcore_kernels.cpu.device_function import device_function
from flcore_kernels.cpu.sorted_tile import key_bytes, mean_of_two, result_writer, row_reader, scale_sums, tile_sorter
from flcore_kernels.dtypes import STORAGE

_U64, _I64 = types.uint64, types.int64
_ADDRESSES, _NUMBERS, _STEPS = types.Array(_U64, 1, "C"), types.Array(_I64, 1, "C"), types.Array(_I64, 2, "C")


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


def _median(dtype: str, result: str) -> Callable[..., Any]:
    sorted_tile, value_row = tile_sorter(dtype, has_tags=False), row_reader(dtype, has_tags=False)
    width, write = key_bytes(dtype, has_tags=False), result_writer(result)

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


def _trimmed_mean(dtype: str, result: str) -> Callable[..., Any]:
    sorted_tile, value_row = tile_sorter(dtype, has_tags=False), row_reader(dtype, has_tags=False)
    width, write, is_wide = key_bytes(dtype, has_tags=False), result_writer(result), dtype == "float64"

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
    sorted_tile, value_row = tile_sorter(dtype, has_tags=False), row_reader(dtype, has_tags=False)
    width, write, is_wide = key_bytes(dtype, has_tags=False), result_writer(result), dtype == "float64"

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
    sorted_tile, value_row = tile_sorter(dtype, has_tags=True), row_reader(dtype, has_tags=True)
    width, write, is_float = key_bytes(dtype, has_tags=True), result_writer(result), STORAGE[dtype].is_float
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
    sorted_tile, value_row = tile_sorter(dtype, has_tags=True), row_reader(dtype, has_tags=True)
    width, write, is_float = key_bytes(dtype, has_tags=True), result_writer(result), STORAGE[dtype].is_float
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
