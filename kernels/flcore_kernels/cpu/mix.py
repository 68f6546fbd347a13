"""The kernel of combinations: M weighted sums of N operands, which are read once.

A tile of all operands lies in the cache as rows of float64. For 4 sums and some columns at a time, the sums stay in
registers while the rows pass by; Numba has no vectors, so that is written as LLVM instructions. Terms are added in the
order of the operands, in float64.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types

from flcore_kernels.cpu import memory
from flcore_kernels.cpu.compiler import Kernel
from flcore_kernels.cpu.decode import DECODERS, STEP
from flcore_kernels.cpu.memory import intrinsic
from flcore_kernels.cpu.vectors import NUMBER, call, has_wide_registers, load, splat, store

TILE = 128
"""Elements of a tile: 32 operands are 32 KiB as float64."""

SUMS = 4
"""Sums that are computed at once."""

_U64, _I64 = types.uint64, types.int64
_ADDRESSES, _SHARES = types.Array(_U64, 1, "C"), types.Array(types.float64, 2, "C")


@cache
def mix_kernel(dtype: str, result: str) -> Kernel:
    """Return the kernel for operands of a dtype, with sums in float32 or float64.

    The shares have a row for each sum, and rows of zeros up to a multiple of `SUMS`. `means` says of each sum whether
    it is a mean, which cannot be outside its values: of the operands (1), of these and zero (2), or not at all (0).
    """
    signature = types.void(_ADDRESSES, _ADDRESSES, _SHARES, types.Array(_I64, 1, "C"), _I64, _I64, _I64, _U64)
    return Kernel(f"mix-{dtype}-{result}", signature, lambda: _mix(dtype, result))


def scratch_bytes(operands: int) -> int:
    """Return the bytes of a thread's scratch memory: a tile of all operands, of `SUMS` sums, and of their bounds."""
    return 8 * TILE * (operands + SUMS + 2)


def _mix(dtype: str, result: str) -> Callable[..., Any]:
    decode, size = DECODERS[dtype].value, DECODERS[dtype].bytes
    add, is_double, row_bytes = _adding(), result == "float64", np.uint64(8 * TILE)

    def run(operands, outs, shares, means, elements, first, last, rows):  # type: ignore[no-untyped-def]
        sums = rows + np.uint64(operands.size) * row_bytes
        lows = sums + np.uint64(SUMS) * row_bytes
        highs = lows + row_bytes
        share_bytes = np.uint64(8 * operands.size)
        for tile in range(first, last):
            start = tile * TILE
            count = min(TILE, elements - start)
            for k in range(operands.size):
                source, row = operands[k] + np.uint64(start * size), rows + np.uint64(k) * row_bytes
                for line in range(0, count * size, 64):
                    memory.prefetch(source + np.uint64(TILE * size + line))
                for begin in range(0, count, STEP):
                    for i in range(begin, min(begin + STEP, count)):
                        memory.store_f64(row, i, np.float64(decode(source, np.float32(1.0), i)))
            for i in range(TILE):
                memory.store_f64(lows, i, np.inf)
                memory.store_f64(highs, i, -np.inf)
            for k in range(operands.size):
                row = rows + np.uint64(k) * row_bytes
                for i in range(TILE):
                    memory.store_f64(lows, i, min(memory.peek_f64(lows, i), memory.peek_f64(row, i)))
                    memory.store_f64(highs, i, max(memory.peek_f64(highs, i), memory.peek_f64(row, i)))
            for m in range(0, shares.shape[0], SUMS):
                add(rows, operands.size, np.uint64(shares.ctypes.data) + np.uint64(m) * share_bytes, sums)
                for j in range(m, min(m + SUMS, outs.size)):
                    values = sums + np.uint64(j - m) * row_bytes
                    if means[j]:
                        zero = 0.0 if means[j] == 2 else np.nan  # `min` and `max` take the first one for a NaN
                        for i in range(TILE):
                            low, high = memory.peek_f64(lows, i), memory.peek_f64(highs, i)
                            low, high = (min(low, zero)), (max(high, zero))
                            value = memory.peek_f64(values, i)
                            value = max(value, low)
                            memory.store_f64(values, i, min(value, high))
                    for i in range(count):
                        if is_double:
                            memory.store_f64(outs[j], start + i, memory.peek_f64(values, i))
                        else:
                            memory.store_f32(outs[j], start + i, np.float32(memory.peek_f64(values, i)))

    return run


def _adding() -> Any:
    """Return the function that computes `SUMS` sums of a tile: `add(rows, number of rows, shares, sums)`."""
    lanes, vectors = (8, 4) if has_wide_registers() else (4, 2)  # 16 of 32 registers, or 8 of 16
    kind = ir.VectorType(ir.DoubleType(), lanes)
    step = ir.Constant(NUMBER, 8 * TILE)

    @intrinsic
    def add(typing: Any, rows: Any, count: Any, shares: Any, sums: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            start, operands, coefficients, target = arguments
            share_bytes = builder.mul(operands, ir.Constant(NUMBER, 8))
            for column in range(0, TILE, lanes * vectors):
                before = builder.block
                loop, done = builder.append_basic_block("operands"), builder.append_basic_block("added")
                builder.branch(loop)
                builder.position_at_end(loop)
                index = builder.phi(NUMBER)
                index.add_incoming(ir.Constant(NUMBER, 0), before)
                totals = [builder.phi(kind) for _ in range(SUMS * vectors)]
                row = builder.add(start, builder.mul(index, step))
                values = [load(builder, kind, row, 8 * (column + lanes * vector)) for vector in range(vectors)]
                place = builder.add(coefficients, builder.mul(index, ir.Constant(NUMBER, 8)))
                added = []
                for total in range(SUMS):
                    share = splat(builder, kind, load(builder, ir.DoubleType(), place))
                    added += [
                        call(builder, "fmuladd", [share, values[vector], totals[total * vectors + vector]])
                        for vector in range(vectors)
                    ]
                    place = builder.add(place, share_bytes)
                following = builder.add(index, ir.Constant(NUMBER, 1))
                index.add_incoming(following, loop)
                for total, value in zip(totals, added, strict=True):
                    total.add_incoming(ir.Constant(kind, [-0.0] * lanes), before)  # a sum of -0.0 stays -0.0
                    total.add_incoming(value, loop)
                builder.cbranch(builder.icmp_signed("<", following, operands), loop, done)
                builder.position_at_end(done)
                for number, value in enumerate(added):
                    total, vector = divmod(number, vectors)
                    store(builder, value, target, 8 * (total * TILE + column + lanes * vector))
            return context.get_dummy_value()

        return types.void(types.uint64, types.int64, types.uint64, types.uint64), generate

    return add
