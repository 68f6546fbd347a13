"""The kernels: a decoder, an accumulator and an encoder composed to one loop, compiled when it is first called.

Every kernel takes a table of *rows*. Row r has `counts[r]` elements, which begin at element `starts[r]` of the total.
`operands[r, k]` is the address of its first element in operand k, and `scales[r, k]` of its first scale. So one call
serves one tensor of a billion elements, cut into rows, as well as ten thousand tensors of a few elements. `first` and
`last` are the range of rows of this call; threads call with different ranges.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from numba import types

from flcore_kernels.cpu import memory
from flcore_kernels.cpu.compiler import Kernel
from flcore_kernels.cpu.decode import DECODERS, Decoder
from flcore_kernels.cpu.device_function import device_function
from flcore_kernels.cpu.digits import BLOCK_BYTES, merge_block
from flcore_kernels.cpu.encode import ENCODERS
from flcore_kernels.cpu.exact import LEVELS, TILE, WORK_BYTES, begin_guessing, exact_sum
from flcore_kernels.cpu.finish import exact_fallback, exact_finish, float_finish
from flcore_kernels.cpu.float import FLOAT_TILE, beyond_limit, float_sum
from flcore_kernels.dtypes import STORAGE
from flcore_kernels.totals import BLOCK, EMPTY

RESULT_BLOCK = np.uint64(max(WORK_BYTES, 8 * FLOAT_TILE))
"""Byte offset of a block of results in scratch memory, after a tile of a total."""

SCRATCH_BYTES = int(RESULT_BLOCK) + 8 * BLOCK
"""Scratch memory of a kernel, one per thread: a tile of a total, and a block of results of 8 bytes."""

_U64, _I64, _F64 = types.uint64, types.int64, types.float64
_TABLE = types.Array(_U64, 2, "C")
_ADDRESSES, _NUMBERS, _REALS = types.Array(_U64, 1, "C"), types.Array(_I64, 1, "C"), types.Array(_F64, 1, "C")
_REAL = {"float32": np.float32, "float64": np.float64}


@cache
def fold_kernel(dtype: str, accumulate: str) -> Kernel:
    """Return the kernel that adds rows of operands to a total in memory; it returns the first bad element, or -1."""
    signature = _I64(_TABLE, _TABLE, _NUMBERS, _NUMBERS, _I64, _I64, _REALS, _U64, _U64, _U64)
    build = _exact_fold if accumulate == "exact" else _float_fold
    return Kernel(f"fold-{_name(dtype)}-{accumulate}", signature, lambda: build(dtype, accumulate))


@cache
def mean_kernel(dtype: str, accumulate: str, result: str, has_base: bool) -> Kernel:
    """Return the kernel that folds rows and finishes them, with a total of one tile."""
    signature = _I64(
        *(_TABLE, _TABLE, _NUMBERS, _NUMBERS, _I64, _I64, _REALS, _ADDRESSES, _ADDRESSES),
        *(_F64, _F64, _I64, _NUMBERS, _U64),
    )
    build = _exact_mean if accumulate == "exact" else _float_mean
    name = f"mean-{_name(dtype)}-{accumulate}-{_name(result)}{'-base' * has_base}"
    return Kernel(name, signature, lambda: build(dtype, accumulate, result, _base(result, has_base)))


@cache
def finish_kernel(accumulate: str, result: str, has_base: bool) -> Kernel:
    """Return the kernel that finishes rows of a total in memory."""
    signature = _I64(
        *(_NUMBERS, _NUMBERS, _I64, _I64, _U64, _U64, _ADDRESSES, _ADDRESSES),
        *(_F64, _F64, _I64, _NUMBERS, _U64),
    )
    build = _exact_finish if accumulate == "exact" else _float_finish
    name = f"finish-{accumulate}-{_name(result)}{'-base' * has_base}"
    return Kernel(name, signature, lambda: build(accumulate, result, _base(result, has_base)))


@cache
def exact_fallback_kernel(result: str) -> Kernel:
    """Return the kernel that finishes blocks of an exact total by long division."""
    signature = _I64(*(_U64, _U64, _NUMBERS, _NUMBERS, _ADDRESSES, _ADDRESSES), *(_ADDRESSES, _I64))
    return Kernel(f"exact-fallback-{_name(result)}", signature, lambda: _exact_fallback(result))


@cache
def merge_kernel() -> Kernel:
    """Return the kernel that adds one exact total's blocks to another's."""
    return Kernel("merge-exact", types.void(_U64, _U64, _U64, _U64, _I64, _I64), _exact_merge)


@device_function
def clear(address: Any, count: Any) -> None:
    """Set `count` int64 to 0."""
    for i in range(count):
        memory.store_i64(address, i, np.int64(0))


def _base(result: str, has_base: bool) -> Decoder | None:
    return DECODERS[result] if has_base else None


def _name(dtype: str) -> str:
    return dtype.replace("[", "x").rstrip("]")


def _float_fold(dtype: str, accumulate: str) -> Callable[..., Any]:
    add, beyond = float_sum(DECODERS[dtype], _REAL[accumulate]), beyond_limit(DECODERS[dtype])
    peek = memory.peek_f32 if accumulate == "float32" else memory.peek_f64
    size = np.dtype(accumulate).itemsize

    def fold(operands, scales, counts, starts, first, last, weights, total, levels, scratch):  # type: ignore[no-untyped-def]
        for row in range(first, last):
            for offset in range(0, counts[row], FLOAT_TILE):
                count = min(FLOAT_TILE, counts[row] - offset)
                here = total + np.uint64((starts[row] + offset) * size)
                at = beyond(operands, row, offset, count, weights.size)
                if at >= 0:
                    return starts[row] + offset + at
                add(here, operands, scales, row, offset, count, weights)
                # Without a branch first, so that LLVM vectorises it; the search runs only if something is wrong.
                is_bad = np.int64(0)
                for i in range(count):
                    is_bad |= np.int64(0) if np.abs(peek(here, i)) < np.inf else np.int64(1)
                if is_bad:
                    for i in range(count):
                        if not np.isfinite(peek(here, i)):
                            return starts[row] + offset + i
        return -1

    return fold


def _float_mean(dtype: str, accumulate: str, result: str, base_of: Decoder | None) -> Callable[..., Any]:
    add, beyond = float_sum(DECODERS[dtype], _REAL[accumulate]), beyond_limit(DECODERS[dtype])
    finish = float_finish(_REAL[accumulate], STORAGE[result], ENCODERS[result], base_of)
    size = np.dtype(accumulate).itemsize
    target_size = ENCODERS[result].bytes

    def mean(  # type: ignore[no-untyped-def]
        operands,
        scales,
        counts,
        starts,
        first,
        last,
        weights,
        targets,
        bases,
        divisor,
        rest,
        past_cache,
        unresolved,
        scratch,
    ):
        total, result_block = scratch, scratch + RESULT_BLOCK
        for row in range(first, last):
            for offset in range(0, counts[row], FLOAT_TILE):
                count = min(FLOAT_TILE, counts[row] - offset)
                at = beyond(operands, row, offset, count, weights.size)
                if at >= 0:
                    return starts[row] + offset + at
                clear(total, (count * size + 7) // 8)
                add(total, operands, scales, row, offset, count, weights)
                along = np.uint64(offset * target_size)
                bad = finish(total, count, divisor, targets[row] + along, bases[row] + along, past_cache, result_block)
                if bad >= 0:
                    return starts[row] + offset + bad
        return -1

    return mean


def _float_finish(accumulate: str, result: str, base_of: Decoder | None) -> Callable[..., Any]:
    finish_tile = float_finish(_REAL[accumulate], STORAGE[result], ENCODERS[result], base_of)
    size = np.dtype(accumulate).itemsize

    def finish(  # type: ignore[no-untyped-def]
        counts, starts, first, last, total, levels, targets, bases, divisor, rest, past_cache, unresolved, scratch
    ):
        result_block = scratch
        for row in range(first, last):
            here = total + np.uint64(starts[row] * size)
            bad = finish_tile(here, counts[row], divisor, targets[row], bases[row], past_cache, result_block)
            if bad >= 0:
                return starts[row] + bad
        return -1

    return finish


def _exact_fold(dtype: str, accumulate: str) -> Callable[..., Any]:
    add_up, beyond = exact_sum(DECODERS[dtype], is_wide=dtype == "float64"), beyond_limit(DECODERS[dtype])

    def fold(operands, scales, counts, starts, first, last, weights, total, levels, scratch):  # type: ignore[no-untyped-def]
        now = scratch + LEVELS
        begin_guessing(scratch)
        for row in range(first, last):
            for offset in range(0, counts[row], TILE):
                count = min(TILE, counts[row] - offset)
                block = (starts[row] + offset) // BLOCK
                here, held = total + np.uint64(block * BLOCK_BYTES), levels + np.uint64(block * 2)
                at = beyond(operands, row, offset, count, weights.size)
                if at >= 0:
                    return starts[row] + offset + at
                bad = add_up(scratch, here, held, operands, scales, row, offset, count, weights)
                if bad >= 0:
                    return (block + bad) * BLOCK
                blocks = (count + BLOCK - 1) // BLOCK
                for i in range(blocks * 2 * BLOCK):
                    memory.store_i64(here, i, memory.peek_i64(scratch, i))
                for b in range(blocks):
                    memory.store_i16(held, b, np.int16(memory.peek_i64(now, b)))
        return -1

    return fold


def _exact_mean(dtype: str, accumulate: str, result: str, base_of: Decoder | None) -> Callable[..., Any]:
    add_up, beyond = exact_sum(DECODERS[dtype], is_wide=dtype == "float64"), beyond_limit(DECODERS[dtype])
    finish = exact_finish(STORAGE[result], ENCODERS[result], base_of)
    target_size = ENCODERS[result].bytes

    def mean(  # type: ignore[no-untyped-def]
        operands,
        scales,
        counts,
        starts,
        first,
        last,
        weights,
        targets,
        bases,
        divisor,
        rest,
        past_cache,
        unresolved,
        scratch,
    ):
        levels, result_block, none = scratch + LEVELS, scratch + RESULT_BLOCK, np.uint64(0)
        begin_guessing(scratch)
        for row in range(first, last):
            for offset in range(0, counts[row], TILE):
                count = min(TILE, counts[row] - offset)
                at = beyond(operands, row, offset, count, weights.size)
                if at >= 0:
                    return starts[row] + offset + at
                bad = add_up(scratch, none, none, operands, scales, row, offset, count, weights)
                if bad >= 0:
                    return starts[row] + offset + bad * BLOCK
                along = np.uint64(offset * target_size)
                finish(
                    *(scratch, levels, starts[row] + offset, count, divisor, rest, targets[row] + along),
                    *(bases[row] + along, past_cache, result_block, unresolved),
                )
        return -1

    return mean


def _exact_finish(accumulate: str, result: str, base_of: Decoder | None) -> Callable[..., Any]:
    finish_tile = exact_finish(STORAGE[result], ENCODERS[result], base_of)
    target_size = ENCODERS[result].bytes

    def finish(  # type: ignore[no-untyped-def]
        counts, starts, first, last, total, levels, targets, bases, divisor, rest, past_cache, unresolved, scratch
    ):
        now, result_block = scratch + LEVELS, scratch + RESULT_BLOCK
        for row in range(first, last):
            for offset in range(0, counts[row], TILE):
                count = min(TILE, counts[row] - offset)
                element = starts[row] + offset
                for b in range((count + BLOCK - 1) // BLOCK):
                    memory.store_i64(now, b, np.int64(memory.load_i16(levels, element // BLOCK + b)))
                along = np.uint64(offset * target_size)
                finish_tile(
                    *(
                        total + np.uint64(element * 16),
                        now,
                        element,
                        count,
                        divisor,
                        rest,
                        targets[row] + along,
                        bases[row] + along,
                    ),
                    *(past_cache, result_block, unresolved),
                )
        return -1

    return finish


def _exact_fallback(result: str) -> Callable[..., Any]:
    divide_block = exact_fallback(STORAGE[result], ENCODERS[result], DECODERS[result])

    def divide_blocks(total, levels, blocks, counts, targets, bases, limbs, exponent):  # type: ignore[no-untyped-def]
        work = (np.zeros(6, np.uint64), np.zeros(6, np.uint64))
        for i in range(blocks.size):
            digits = total + np.uint64(blocks[i] * BLOCK * 16)
            level = np.int64(memory.load_i16(levels, blocks[i]))
            if level == EMPTY:
                level = np.int64(0)
            bad = divide_block(digits, level, counts[i], limbs, exponent, targets[i], bases[i], work)
            if bad >= 0:
                return blocks[i] * BLOCK + bad
        return -1

    return divide_blocks


def _exact_merge() -> Callable[..., Any]:
    def merge(total, levels, other, other_levels, first, last):  # type: ignore[no-untyped-def]
        for block in range(first, last):
            mine = np.int64(memory.load_i16(levels, block))
            theirs = np.int64(memory.load_i16(other_levels, block))
            here, there = total + np.uint64(block * BLOCK * 16), other + np.uint64(block * BLOCK * 16)
            new = merge_block(here, mine, there, theirs)
            memory.store_i16(levels, block, np.int16(new))

    return merge
