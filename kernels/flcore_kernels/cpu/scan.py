"""Inspecting and converting operands: the kernels and drivers of `max_abs`, `inspect`, `encode` and `decode`."""

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
from numba import types

from flcore_kernels.backend import Array, Buffer
from flcore_kernels.call_checks import require_encodable
from flcore_kernels.cpu import memory
from flcore_kernels.cpu.compiler import Kernel
from flcore_kernels.cpu.decode import DECODERS, no_factor
from flcore_kernels.cpu.device_function import device_function
from flcore_kernels.cpu.encode import ENCODERS
from flcore_kernels.dtypes import lookup
from flcore_kernels.error_location import values_of
from flcore_kernels.errors import NotFinite
from flcore_kernels.inspection import Inspection
from flcore_kernels.rows import addresses_of, require_writable, sizes_of
from flcore_kernels.threads import Pool

TILE = 4096
"""Elements of one vectorised loop that finds a largest magnitude. The loop's end costs little beside them."""

STRETCH = 4 * TILE
"""Elements of one result of `max_abs` in `inspect`. If it is not finite, NumPy searches them for the first bad element,
with a temporary of 128 KiB (float64)."""

SHARE = 64 * STRETCH
"""Elements (one million) of a thread's batch. With smaller ones, waking a thread takes longer than it saves."""

LARGEST_SCALE = np.nextafter(np.float32(np.finfo(np.float32).max / 127), np.float32(0))
"""The largest float32 for which fl32(127 · scale) is finite."""

_U64, _I64, _F64 = types.uint64, types.int64, types.float64
_TABLE, _NUMBERS = types.Array(_U64, 2, "C"), types.Array(_I64, 1, "C")
_REAL_TABLE = types.Array(_F64, 2, "C")


@cache
def max_abs_kernel(dtype: str) -> Kernel:
    """Return the kernel that finds the largest magnitude of each row of each operand."""
    name = f"max-abs-{dtype.replace('[', 'x').rstrip(']')}"
    return Kernel(name, types.void(_TABLE, _TABLE, _NUMBERS, _I64, _I64, _REAL_TABLE), lambda: _max_abs(dtype))


@cache
def encode_kernel(dtype: str) -> Kernel:
    """Return the kernel that rounds float32 values to a narrower float."""
    return Kernel(f"encode-{dtype}", types.void(_U64, _U64, _I64, _I64), lambda: _encode(dtype))


@cache
def quantize_kernel(block: int) -> Kernel:
    """Return the kernel that turns blocks of float32 values into codes and a scale; it returns a bad block, or -1."""
    return Kernel(f"quantize-{block}", _I64(_U64, _U64, _U64, _I64, _I64, _I64), lambda: _quantize(block))


@cache
def decode_kernel(dtype: str) -> Kernel:
    """Return the kernel that writes the float32 values of an operand."""
    name = f"decode-{dtype.replace('[', 'x').rstrip(']')}"
    return Kernel(name, types.void(_U64, _U64, _U64, _I64, _I64), lambda: _decode(dtype))


def _max_abs(dtype: str) -> Callable[..., Any]:
    decode = DECODERS[dtype]
    factor, max_abs = decode.factor, decode.max_abs
    # A factor holds for `step` elements. Without factors, a loop takes a whole tile.
    reach = TILE if factor is no_factor else decode.step

    def find(operands, scales, counts, first, last, magnitudes):  # type: ignore[no-untyped-def]
        for row in range(first, last):
            for k in range(operands.shape[1]):
                top = 0.0
                for start in range(0, counts[row], reach):
                    here = max_abs(
                        operands[row, k], factor(scales[row, k], start), start, min(reach, counts[row] - start)
                    )
                    if not here <= top and top == top:  # a NaN replaces a number, and stays
                        top = here
                magnitudes[row, k] = top

    return find


def _encode(dtype: str) -> Callable[..., Any]:
    store = ENCODERS[dtype].store_single or _rounded_in_float64(dtype)

    def run(values, out, first, last):  # type: ignore[no-untyped-def]
        for i in range(first, last):
            store(out, i, memory.load_f32(values, i))

    return run


def _rounded_in_float64(dtype: str) -> Callable[..., Any]:
    """Return a function that rounds a float32 and writes it, for a processor without instructions for `dtype`."""
    round_once, write = ENCODERS[dtype].round, ENCODERS[dtype].store

    @device_function
    def store(address: Any, index: Any, single: Any) -> None:
        value = np.float64(single)
        # Rounding adds and subtracts, which may lose the sign of a zero.
        write(address, index, np.copysign(round_once(value), value))

    return store  # type: ignore[no-any-return]


def _quantize(block: int) -> Callable[..., Any]:
    max_abs = DECODERS["float32"].max_abs

    def quantize(values, codes, scales, first, last, size):  # type: ignore[no-untyped-def]
        for b in range(first, last):
            start = b * block
            count = min(block, size - start)
            top = max_abs(values, np.float32(1.0), start, count)
            if not top < np.inf:
                return b
            scale = np.float32(np.float32(top) / np.float32(127.0))
            # A denormal scale has too few bits for the documented error. The block, below 127 · 2^-126, becomes zeros.
            if scale < np.float32(2.0**-126):
                scale = np.float32(0.0)
            # Rounding up the quotient near float32's end would make 127 · scale an infinity.
            scale = min(scale, LARGEST_SCALE)
            memory.store_f32(scales, b, scale)
            for i in range(count):
                x = memory.load_f32(values, start + i)
                code = np.rint(np.float32(x / scale)) if scale > np.float32(0.0) else np.float32(0.0)
                memory.store_i8(codes, start + i, np.int8(code))
        return -1

    return quantize


def _decode(dtype: str) -> Callable[..., Any]:
    decode = DECODERS[dtype]
    value, factor, step = decode.value, decode.factor, decode.step

    def run(operand, scales, out, first, last):  # type: ignore[no-untyped-def]
        for start in range(first, last, step):
            f = factor(scales, start)
            for i in range(start, min(start + step, last)):
                memory.store_f32(out, i, np.float32(value(operand, f, i)))

    return run


def inspect_buffer(pool: Pool, operand: Buffer, dtype: str) -> Inspection:
    """Find the first bad element and the largest magnitude (see `Backend.inspect`)."""
    storage = lookup(dtype)
    (size,) = sizes_of(operand)
    ((address,), (scales,)) = addresses_of(operand, storage, [size], "operand")
    tops = _tops(pool, np.uint64(address), np.uint64(scales), size, dtype)
    sound = np.isfinite(tops)
    top, first = float(tops[sound].max(initial=0.0)), -1
    for stretch in np.flatnonzero(~sound).tolist():
        start = stretch * STRETCH
        values = values_of(operand, storage, dtype, start, min(size, start + STRETCH))
        finite = np.isfinite(values)
        top = max(top, float(np.abs(values[finite]).max(initial=0.0)))
        first = first if first >= 0 else start + int(np.argmin(finite))
    return Inspection(first, top)


def _tops(pool: Pool, address: np.uint64, scales: np.uint64, size: int, dtype: str) -> npt.NDArray[np.float64]:
    """Return the largest magnitude of each stretch of an operand, infinite or NaN where not all of it is finite."""
    storage, kernel = lookup(dtype), max_abs_kernel(dtype)
    starts = np.arange(0, size, STRETCH)
    counts = np.minimum(STRETCH, size - starts)
    table = (address + (starts * storage.dtype.itemsize).astype(np.uint64))[:, None]
    scale_table = (scales + (starts // storage.block * 4).astype(np.uint64))[:, None] if storage.block else table
    tops, each = np.zeros((starts.size, 1)), SHARE // STRETCH
    pool.run(
        lambda batch: kernel(table, scale_table, counts, batch * each, min(starts.size, (batch + 1) * each), tops),
        -(-starts.size // each),
    )
    return tops[:, 0]


def encode_buffer(pool: Pool, values: Array, out: Buffer, dtype: str) -> None:
    """Round float32 values to a narrower dtype (see `Backend.encode`)."""
    storage = lookup(dtype)
    ((source,), _) = addresses_of(values, lookup("float32"), [values.size], "values")
    ((target,), (scales,)) = addresses_of(out, storage, [values.size], "out")
    require_writable(out)
    require_encodable(dtype)
    if not storage.block:
        narrow = encode_kernel(dtype)
        pool.run(
            lambda batch: narrow(source, target, batch * SHARE, min(values.size, (batch + 1) * SHARE)),
            -(-values.size // SHARE),
        )
        return
    kernel = quantize_kernel(storage.block)
    blocks, share = -(-values.size // storage.block), SHARE // storage.block
    bad = pool.run(
        lambda batch: int(kernel(source, target, scales, batch * share, min(blocks, (batch + 1) * share), values.size)),
        -(-blocks // share),
    )
    for block in bad:
        if block >= 0:
            first = inspect_buffer(pool, np.ascontiguousarray(values).reshape(-1), "float32").first_bad
            raise NotFinite(0, first, float(values.reshape(-1)[first]))


def decode_buffer(pool: Pool, operand: Buffer, out: Array, dtype: str) -> None:
    """Write the float32 values of an operand (see `Backend.decode`)."""
    ((source,), (scales,)) = addresses_of(operand, lookup(dtype), [out.size], "operand")
    ((target,), _) = addresses_of(out, lookup("float32"), [out.size], "out")
    require_writable(out)
    kernel = decode_kernel(dtype)
    pool.run(
        lambda batch: kernel(source, scales, target, batch * SHARE, min(out.size, (batch + 1) * SHARE)),
        -(-out.size // SHARE),
    )
