"""Sums in float32 and float64: total += Σ weight · value, operand by operand in the order given.

A tile of the total stays in the cache while all operands stream through it, five at a time, so that the total is read
and written once for five operands. If two to four operands are left, the last one fills the empty places with weight 0.
Each product and each sum is rounded. Nothing is contracted (FMA) or reordered, so the result does not depend on the
processor's vector width.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np

from flcore_kernels.cpu import memory
from flcore_kernels.cpu.decode import STEP, Decoder
from flcore_kernels.cpu.device_function import device_function

FLOAT_TILE = 8192
"""Elements of a tile: 32 KiB of float32 or 64 KiB of float64, in the second-level cache beside prefetched lines."""


@cache
def float_sum(decode: Decoder, real: Any) -> Callable[..., Any]:
    """Return the loop that adds some operands to one tile of a total of `real` (float32 or float64).

    `add(total, operands, scales, row, offset, count, weights)`: `operands[row, k]` is the address of operand k, whose
    element `offset` is added to the tile's first element. `total` is the tile's address, `count` its elements.
    """
    peek, store = (memory.peek_f32, memory.store_f32) if real is np.float32 else (memory.peek_f64, memory.store_f64)
    value, factor, step = decode.value, decode.factor, decode.step
    size = np.uint64(decode.bytes)
    line = 64 // decode.bytes
    # Measured. Narrow operands take less time per line, so the same latency is more lines.
    ahead_bytes = np.uint64(2048 if decode.bytes >= 4 else 4096)

    @device_function
    def fetch(address: Any, index: Any, count: Any) -> None:
        """Ask for the lines of some elements, ahead of the loop."""
        ahead = address + np.uint64(index) * size + ahead_bytes
        for i in range(0, count, line):
            memory.prefetch(ahead + np.uint64(i) * size)

    @device_function
    def add_five(total: Any, a: Any, s: Any, w: Any, at: Any, first: Any, count: Any) -> Any:
        a0, a1, a2, a3, a4 = a
        w0, w1, w2, w3, w4 = w
        f0, f1, f2 = factor(s[0], first), factor(s[1], first), factor(s[2], first)
        f3, f4 = factor(s[3], first), factor(s[4], first)
        for i in range(count):
            held = peek(total, at + i)
            held = real(held + real(w0 * real(value(a0, f0, first + i))))
            held = real(held + real(w1 * real(value(a1, f1, first + i))))
            held = real(held + real(w2 * real(value(a2, f2, first + i))))
            held = real(held + real(w3 * real(value(a3, f3, first + i))))
            held = real(held + real(w4 * real(value(a4, f4, first + i))))
            store(total, at + i, held)

    @device_function
    def add_one(total: Any, a: Any, s: Any, w: Any, at: Any, first: Any, count: Any) -> Any:
        f = factor(s, first)
        for i in range(count):
            store(total, at + i, real(peek(total, at + i) + real(w * real(value(a, f, first + i)))))

    @device_function
    def add_group(
        total: Any, operands: Any, scales: Any, row: Any, offset: Any, count: Any, weights: Any, k: Any
    ) -> Any:
        last = weights.size - 1
        k1, k2, k3, k4 = min(k + 1, last), min(k + 2, last), min(k + 3, last), min(k + 4, last)
        a = (operands[row, k], operands[row, k1], operands[row, k2], operands[row, k3], operands[row, k4])
        s = (scales[row, k], scales[row, k1], scales[row, k2], scales[row, k3], scales[row, k4])
        w = (
            # A missing operand adds 0 · value, which is ±0 and changes no sum that is not -0. The total begins at +0,
            # and no sum of +0 and other numbers rounds to -0. A value that is not finite gives a NaN, but the total is
            # not finite by then: the value was added with its own weight.
            real(weights[k]),
            real(weights[k1] if k + 1 <= last else 0.0),
            real(weights[k2] if k + 2 <= last else 0.0),
            real(weights[k3] if k + 3 <= last else 0.0),
            real(weights[k4] if k + 4 <= last else 0.0),
        )
        for at in range(0, count, step):
            first = offset + at
            turn = at // step % 5  # in turn: five steps' lines of one operand at once are faster than a line of each
            if k + turn <= last:
                fetch(operands[row, k + turn], first - turn * step, np.int64(5 * step))
            if at + step <= count:
                add_five(total, a, s, w, at, first, step)
            else:
                add_five(total, a, s, w, at, first, count - at)

    @device_function
    def add(total: Any, operands: Any, scales: Any, row: Any, offset: Any, count: Any, weights: Any) -> Any:
        clients = weights.size
        k = 0
        while k + 1 < clients:
            add_group(total, operands, scales, row, offset, count, weights, k)
            k += 5
        if k < clients:
            for at in range(0, count, step):
                first = offset + at
                fetch(operands[row, k], first, np.int64(step))
                if at + step <= count:
                    add_one(total, operands[row, k], scales[row, k], real(weights[k]), at, first, step)
                else:
                    add_one(total, operands[row, k], scales[row, k], real(weights[k]), at, first, count - at)

    return add  # type: ignore[no-any-return]


@cache
def beyond_limit(decode: Decoder) -> Callable[..., Any]:
    """Return the loop that looks for integers beyond `Decoder.limit`: the offset of a step that has one, or -1.

    For dtypes without a limit, the loop is empty and costs nothing.
    """
    max_abs, limit = decode.max_abs, decode.limit
    is_needed = limit < np.inf

    @device_function
    def beyond(operands: Any, row: Any, offset: Any, count: Any, clients: Any) -> Any:
        if is_needed:
            for k in range(clients):
                for at in range(0, count, STEP):
                    if max_abs(operands[row, k], np.float32(1.0), offset + at, min(STEP, count - at)) > limit:
                        return at
        return -1

    return beyond  # type: ignore[no-any-return]


__all__ = ["FLOAT_TILE", "beyond_limit", "float_sum"]
