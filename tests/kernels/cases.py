"""Operands to fold, of every dtype, and what they hold."""

import io
from collections.abc import Sequence
from itertools import permutations
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from flcore_kernels import STORAGE, Backend, Quantized, Total, storage_dtype

from tests.reference import DTYPES, FLOATS, INTEGERS, dequantized, stored

QUANTIZED = [dtype for dtype in STORAGE if STORAGE[dtype].block]
EDGES = [0, 1, 7, 63, 64, 65, 255, 256, 257, 8191, 8192, 8193]
"""Sizes: nothing, one, a prime, and around the edge of every block and tile."""

Array = npt.NDArray[Any]

_ALTERNATE = [dtype for dtype in STORAGE if dtype not in (*FLOATS, "int64", "uint64")]

PAIRS = [
    *((dtype, "exact") for dtype in STORAGE),
    *((dtype, accumulate) for dtype in (*FLOATS, "int64", "uint64") for accumulate in ("float64", "float32")),
    *((dtype, ("float32", "float64")[number % 2]) for number, dtype in enumerate(_ALTERNATE)),
]
"""Dtypes and accumulators that kernels are tested for.

A loop that sums is written once for an accumulator, and a decoder once for a dtype. So every decoder meets exact sums
and one kind of float sums; both kinds where its values may be too large for one of them, or lose bits in it.
"""

RESULTS = [
    *((dtype, dtype) for dtype in FLOATS),
    *permutations(FLOATS, 2),
    *(("float64", "int8"), ("float64", "int64"), ("float32", "int8")),
]
"""Dtypes of operands and of an exact mean. How an integer is written does not depend on the dtype that was read."""

BASES = [
    *((dtype, "exact") for dtype in ("float64", "float32", "bfloat16", "int16", "int32", "int8[32]")),
    *(("float64", "float64"), ("float32", "float64"), ("bfloat16", "float64"), ("int16", "float64")),
    *(("float32", "float32"), ("bfloat16", "float32"), ("int32", "float32"), ("int8[32]", "float64")),
]
"""Dtypes and accumulators of differences that are added to a base."""


class Case(NamedTuple):
    """An operand as the kernels take it, and its values."""

    operand: Any
    values: npt.NDArray[np.float64]


def case(values: Array) -> Case:
    """Make a case of an array of one of the dtypes."""
    return Case(stored(values), values.astype(np.float64))


def draw(rng: np.random.Generator, dtype: str, size: int) -> Case:
    """Draw values over a dtype's everyday range, zeros of both signs, denormals and large ones among them."""
    if block := STORAGE[dtype].block:
        codes = rng.integers(-128, 127, size, np.int8, endpoint=True)
        scales = (10.0 ** rng.uniform(-6, 2, -(-size // block))).astype(np.float32)
        return Case(Quantized(codes, scales), dequantized(codes, scales, block).astype(np.float64))
    if dtype in INTEGERS:
        low, high = (max(-(2.0**52), min(2.0**52, end)) for end in STORAGE[dtype].range)
        return case(rng.integers(int(low), int(high), size, INTEGERS[dtype], endpoint=True))
    drawn = rng.standard_normal(size) * 10.0 ** rng.integers(-4, 4, size)
    with np.errstate(under="ignore"):
        drawn = np.where(rng.random(size) < 0.05, np.finfo(np.float32).tiny / 64, drawn).astype(DTYPES[dtype])
    drawn[rng.random(size) < 0.05] = 0.0
    drawn[rng.random(size) < 0.05] = -0.0
    return case(drawn)


def folded(
    device: Backend, operands: Sequence[Any], weights: Sequence[float], dtype: str, accumulate: str, size: int
) -> Total:
    """Return the total of some operands, folded in one call."""
    total = device.total(size, accumulate)
    device.fold(total, operands, weights, dtype)
    return total


def finished(device: Backend, total: Total, result: str) -> Array:
    """Return a total's mean as it is stored."""
    out = np.empty(total.elements, storage_dtype(result))
    device.finish(total, out, result)
    return out


def mean(
    device: Backend,
    operands: Sequence[Any],
    weights: Sequence[float],
    dtype: str,
    accumulate: str,
    result: str,
    size: int,
) -> Array:
    """Return a mean in one pass, as it is stored."""
    out = np.empty(size, storage_dtype(result))
    device.mean(operands, weights, out, dtype, accumulate, result=result)
    return out


def opened(array: Array, dtype: str) -> npt.NDArray[np.float64]:
    """Return the values that storage of a dtype holds."""
    values: npt.NDArray[np.float64] = array.view(DTYPES[dtype]).astype(np.float64)
    return values


def state_of(device: Backend, total: Total) -> bytes:
    """Return what `save` writes of a total."""
    file = io.BytesIO()
    device.save(total, file)
    return file.getvalue()


def again(device: Backend, total: Total) -> Total:
    """Save a total and restore it."""
    return device.restore(io.BytesIO(state_of(device, total)))


def at_odd_address(array: Array) -> Array:
    """Return a read-only copy that begins at an odd address."""
    room = np.empty(array.nbytes + 2, np.uint8)
    offset = 1 - room.__array_interface__["data"][0] % 2
    room[offset : offset + array.nbytes] = array.view(np.uint8)
    moved = room[offset : offset + array.nbytes].view(array.dtype)
    moved.flags.writeable = False
    assert moved.__array_interface__["data"][0] % 2 == 1
    return moved
