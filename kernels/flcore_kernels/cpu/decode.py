"""How operands are read: for each dtype, the value of an element and the largest magnitude of a range.

Quantized codes have scales. A loop reads the scale of a step (`factor`) once, and passes it to `value`; other dtypes
ignore it. The value of a code is fl32(scale · code) in every kernel of every backend.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import llvmlite.binding
import numpy as np

from flcore_kernels.cpu import memory
from flcore_kernels.cpu.device_function import device_function
from flcore_kernels.dtypes import EXACT_INTEGER_LIMIT, QUANTIZED_BLOCKS, STORAGE

STEP = 64
"""Elements of an innermost loop: a block of an exact sum, or four of the widest vectors (16 float32)."""


@dataclass(frozen=True)
class Decoder:
    """How one dtype is read.

    `bytes` is the size of an element. `step`, at most `STEP`, is the number of elements that an innermost loop reads
    with one factor. `value(address, factor, index)` returns an element. `max_abs(address, factor, first, count)`
    returns the largest magnitude of a range as a float64, infinite or NaN if one of its elements is. Integers of a
    magnitude beyond `limit` are refused.
    """

    bytes: int
    step: int
    limit: float
    factor: Callable[..., Any]
    value: Callable[..., Any]
    max_abs: Callable[..., Any]


def has_half_instructions() -> bool:
    """Whether this processor has instructions that convert float16 (F16C on x86, FP16 on ARM)."""
    features = llvmlite.binding.get_host_cpu_features()
    return bool(features.get("f16c")) or bool(features.get("fullfp16"))


@device_function
def no_factor(scales: Any, first: Any) -> Any:
    """Return 1: a dtype without scales."""
    return np.float32(1.0)


@device_function
def float64_value(address: Any, factor: Any, index: Any) -> Any:
    """An element of a float64 operand."""
    return memory.load_f64(address, index)


@device_function
def float32_value(address: Any, factor: Any, index: Any) -> Any:
    """An element of a float32 operand."""
    return memory.load_f32(address, index)


@device_function
def bfloat16_value(address: Any, factor: Any, index: Any) -> Any:
    """An element of a bfloat16 operand: the upper half of a float32."""
    return memory.f32_of(np.uint32(memory.load_u16(address, index)) << np.uint32(16))


@device_function
def float16_value_by_hardware(address: Any, factor: Any, index: Any) -> Any:
    """An element of a float16 operand."""
    return memory.half_to_f32(memory.load_u16(address, index))


@device_function
def float16_value_by_bits(address: Any, factor: Any, index: Any) -> Any:
    """An element of a float16 operand, without the instruction: a product of 2^112 changes the exponent's bias.

    The bias changes from 15 to 127. The product is exact, for denormals of float16 too. Infinities and NaN (an exponent
    of 31) get float32's exponent of 255 instead.
    """
    wide = np.uint32(memory.load_u16(address, index))
    sign = np.uint32(np.uint32(wide & np.uint32(0x8000)) << np.uint32(16))
    body = np.uint32(np.uint32(wide & np.uint32(0x7FFF)) << np.uint32(13))
    finite = memory.f32_bits(memory.f32_of(body) * np.float32(2.0**112))
    special = np.uint32(body | np.uint32(0x7F800000))
    return memory.f32_of(sign | (special if body >= np.uint32(0x0F800000) else finite))


float16_value = float16_value_by_hardware if has_half_instructions() else float16_value_by_bits


def _max_abs_float(load: Callable[..., Any], unsigned: Any, mask: int, decode: Callable[..., Any]) -> Any:
    # Bits without the sign are in the order of magnitudes, and those of infinities and NaN are the largest: one integer
    # maximum finds both, in vectors of up to four times as many elements as float64's.
    cut, zero = unsigned(mask), unsigned(0)

    @device_function
    def max_abs(address: Any, factor: Any, first: Any, count: Any) -> Any:
        top = zero
        for i in range(count):
            top = unsigned(max(top, unsigned(load(address, first + i) & cut)))
        return np.float64(decode(top))

    return max_abs


@device_function
def _from_64(bits: Any) -> Any:
    return memory.f64_of(bits)


@device_function
def _from_32(bits: Any) -> Any:
    return memory.f32_of(bits)


@device_function
def _from_bfloat16(bits: Any) -> Any:
    return memory.f32_of(np.uint32(bits) << np.uint32(16))


@device_function
def _from_float16(bits: Any) -> Any:
    body = np.uint32(np.uint32(bits) << np.uint32(13))
    if bits >= np.uint16(0x7C00):
        return memory.f32_of(body | np.uint32(0x7F800000))
    return np.float32(memory.f32_of(body) * np.float32(2.0**112))


def _integer(name: str, load: Callable[..., Any]) -> Decoder:
    exact, zero = np.uint64(EXACT_INTEGER_LIMIT), np.uint64(0)
    storage = STORAGE[name]
    widened = np.uint64 if storage.dtype.kind == "u" else np.int64

    @device_function
    def value(address: Any, factor: Any, index: Any) -> Any:
        return load(address, index)

    @device_function
    def max_abs(address: Any, factor: Any, first: Any, count: Any) -> Any:
        """Compare as integers: as a float64, 2^53 + 1 becomes 2^53, and would pass."""
        # abs(-2^63) is -2^63 in int64, whose bits as an uint64 are 2^63.
        top = zero
        for i in range(count):
            top = max(top, np.uint64(abs(widened(load(address, first + i)))))
        rounded = np.float64(top)
        return rounded if top <= exact or rounded > 2.0**53 else 2.0**53 + 2.0

    return Decoder(storage.dtype.itemsize, STEP, storage.limit, no_factor, value, max_abs)


def _quantized(block: int) -> Decoder:
    step = min(block, STEP)

    @device_function
    def factor(scales: Any, first: Any) -> Any:
        return memory.load_f32(scales, first // block)

    @device_function
    def value(address: Any, factor: Any, index: Any) -> Any:
        return np.float32(factor * np.float32(memory.load_i8(address, index)))

    @device_function
    def max_abs(address: Any, factor: Any, first: Any, count: Any) -> Any:
        top = np.int32(0)
        for i in range(count):
            top = np.int32(max(top, np.int32(abs(np.int32(memory.load_i8(address, first + i))))))
        return np.float64(np.abs(np.float32(factor * np.float32(top))))

    return Decoder(1, step, np.inf, factor, value, max_abs)


def _float(name: str, load: Callable[..., Any], unsigned: Any, value: Callable[..., Any], decode: Any) -> Decoder:
    storage = STORAGE[name]
    max_abs = _max_abs_float(load, unsigned, storage.magnitude_mask, decode)
    return Decoder(storage.dtype.itemsize, STEP, np.inf, no_factor, value, max_abs)


DECODERS: dict[str, Decoder] = {
    "float64": _float("float64", memory.load_u64, np.uint64, float64_value, _from_64),
    "float32": _float("float32", memory.load_u32, np.uint32, float32_value, _from_32),
    "float16": _float("float16", memory.load_u16, np.uint16, float16_value, _from_float16),
    "bfloat16": _float("bfloat16", memory.load_u16, np.uint16, bfloat16_value, _from_bfloat16),
    "int8": _integer("int8", memory.load_i8),
    "int16": _integer("int16", memory.load_i16),
    "int32": _integer("int32", memory.load_i32),
    "int64": _integer("int64", memory.load_i64),
    "uint8": _integer("uint8", memory.load_u8),
    "uint16": _integer("uint16", memory.load_u16),
    "uint32": _integer("uint32", memory.load_u32),
    "uint64": _integer("uint64", memory.load_u64),
    "bool": _integer("bool", memory.load_u8),
    **{f"int8[{block}]": _quantized(block) for block in QUANTIZED_BLOCKS},
}
"""How every dtype is read, by its name."""
