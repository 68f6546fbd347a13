"""What an operand's bits mean: for each wire dtype, the value of an element and the largest magnitude of a block.

Quantized codes come with scales. A loop asks `factor` for the scale of the step that it is about to walk, and hands it
to `value`; other dtypes have none. A code's value is fl32(scale · code), here and everywhere.
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
"""Elements that the innermost loops walk: a block of an exact sum, and long enough for the widest vectors."""


@dataclass(frozen=True)
class Decoder:
    """How one dtype is read.

    `step` is the number of elements that share a factor, at most `STEP`. `value(address, factor, index)` is an element;
    `max_abs(address, factor, first, count)` the largest magnitude of some, in float64, not finite where one is not.
    Magnitudes beyond `limit` are refused.
    """

    bytes: int
    step: int
    limit: float
    factor: Callable[..., Any]
    value: Callable[..., Any]
    max_abs: Callable[..., Any]


def has_half_instructions() -> bool:
    """Whether this processor converts float16 by itself."""
    features = llvmlite.binding.get_host_cpu_features()
    return bool(features.get("f16c")) or bool(features.get("fullfp16"))


@device_function
def no_factor(scales: Any, first: Any) -> Any:
    """Other dtypes than quantized ones."""
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
    """The same for any processor: the exponent re-biased by a product, which also takes denormals (exactly)."""
    wide = np.uint32(memory.load_u16(address, index))
    sign = np.uint32(np.uint32(wide & np.uint32(0x8000)) << np.uint32(16))
    body = np.uint32(np.uint32(wide & np.uint32(0x7FFF)) << np.uint32(13))
    finite = memory.f32_bits(memory.f32_of(body) * np.float32(2.0**112))
    special = np.uint32(body | np.uint32(0x7F800000))
    return memory.f32_of(sign | (special if body >= np.uint32(0x0F800000) else finite))


float16_value = float16_value_by_hardware if has_half_instructions() else float16_value_by_bits


def _max_abs_float(load: Callable[..., Any], unsigned: Any, mask: int, decode: Callable[..., Any]) -> Any:
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
    row = STORAGE[name]
    widened = np.uint64 if row.storage.kind == "u" else np.int64

    @device_function
    def value(address: Any, factor: Any, index: Any) -> Any:
        return load(address, index)

    @device_function
    def max_abs(address: Any, factor: Any, first: Any, count: Any) -> Any:
        """In integers, for float64 does not tell 2^53 from what lies beyond, and 2^53 + 1 is rounded up."""
        top = zero
        for i in range(count):
            top = max(top, np.uint64(abs(widened(load(address, first + i)))))
        rounded = np.float64(top)
        return rounded if top <= exact or rounded > 2.0**53 else 2.0**53 + 2.0

    return Decoder(row.storage.itemsize, STEP, row.limit, no_factor, value, max_abs)


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
    row = STORAGE[name]
    max_abs = _max_abs_float(load, unsigned, row.magnitude_mask, decode)
    return Decoder(row.storage.itemsize, STEP, np.inf, no_factor, value, max_abs)


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
