"""Rounding a float64 to a dtype, once, to nearest even, and storing it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from flcore_kernels.cpu import memory
from flcore_kernels.cpu.decode import has_half_instructions
from flcore_kernels.cpu.device_function import device_function
from flcore_kernels.dtypes import STORAGE

INTEGERS = ("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")


@dataclass(frozen=True)
class Encoder:
    """How one dtype is written.

    `round(value)` is the nearest value that the dtype holds, as a float64 (beyond its range: as if it had no end);
    `store(address, index, rounded)` writes one. `store_single(address, index, value)` rounds a float32 and writes it,
    NaN and infinity too, for dtypes that are no wider and where the processor does that fast.
    """

    bytes: int
    round: Callable[..., Any]
    store: Callable[..., Any]
    low: float
    high: float
    store_single: Callable[..., Any] | None = None


def _round_to(precision: int, lowest: int) -> Callable[..., Any]:
    """Return the rounding to `precision` significant bits, but to no finer step than 2^lowest. NaN and infinity stay.

    Normal numbers: half a unit of the last bit that stays (minus one bit, if that bit is 0: ties to even) is added to
    the bits as an integer, and the lower bits are cleared. A carry out of the significand increments the exponent, as
    it should. Below the smallest normal number: adding and subtracting 1.5 · 2^52 steps rounds to a multiple of the
    step. Both are computed and one is selected, so that the loop has no branches.
    """
    cut = 53 - precision
    one, below_half, keep = np.int64(1), np.int64((1 << (cut - 1)) - 1), np.int64(-(1 << cut))
    magic, smallest = 1.5 * 2.0 ** (52 + lowest), 2.0 ** (lowest + precision - 1)

    @device_function
    def round_once(value: Any) -> Any:
        bits = memory.f64_bits(value)
        odd = np.int64(bits >> np.int64(cut)) & one
        normal = memory.f64_of((bits + below_half + odd) & keep)
        tiny = (value + magic) - magic
        rounded = tiny if np.abs(value) < smallest else normal
        return rounded if np.abs(value) < np.inf else value

    return round_once  # type: ignore[no-any-return]


@device_function
def round_float64(value: Any) -> Any:
    """Return a float64 unchanged."""
    return value


@device_function
def round_float32(value: Any) -> Any:
    """Round to float32 with the processor's conversion."""
    return np.float64(np.float32(value))


@device_function
def round_integer(value: Any) -> Any:
    """Round to an integer, ties to even."""
    return np.rint(value)


@device_function
def store_float64(address: Any, index: Any, rounded: Any) -> None:
    """Write a float64."""
    memory.store_f64(address, index, rounded)


@device_function
def store_float32(address: Any, index: Any, rounded: Any) -> None:
    """Write a float32."""
    memory.store_f32(address, index, np.float32(rounded))


@device_function
def store_bfloat16(address: Any, index: Any, rounded: Any) -> None:
    """Write the upper half of the float32 that has the value of a rounded bfloat16."""
    # The highest bit of a NaN's fraction is set: a NaN with only lower bits would be cut to an infinity.
    bits = memory.f32_bits(rounded)
    quiet = np.uint32(0x00400000) if rounded != rounded else np.uint32(0)
    memory.store_u16(address, index, np.uint16(np.uint32(bits | quiet) >> np.uint32(16)))


@device_function
def store_single_bfloat16(address: Any, index: Any, value: Any) -> None:
    """Round a float32 to its upper half, ties to even (see `_round_to`).

    A NaN is made quiet instead: a carry could turn it into a zero, and cutting into an infinity.
    """
    bits = memory.f32_bits(value)
    odd = np.uint32(np.uint32(bits >> np.uint32(16)) & np.uint32(1))
    rounded = np.uint32(bits + np.uint32(0x7FFF) + odd)
    chosen = np.uint32(bits | np.uint32(0x00400000)) if value != value else rounded
    memory.store_u16(address, index, np.uint16(chosen >> np.uint32(16)))


@device_function
def store_float16_by_hardware(address: Any, index: Any, rounded: Any) -> None:
    """Write a float16."""
    memory.store_u16(address, index, memory.f32_to_half(np.float32(rounded)))


@device_function
def store_float16_by_bits(address: Any, index: Any, rounded: Any) -> None:
    """Write a float16 without the instruction: a product of 2^-112 changes the exponent's bias from 127 to 15.

    The product is exact, because the value is a float16 already: those below 2^-14 become denormals of float32, whose
    bits 13 and up are the denormals of float16.
    """
    bits = memory.f32_bits(rounded)
    sign = np.uint32(np.uint32(bits >> np.uint32(16)) & np.uint32(0x8000))
    small = memory.f32_bits(np.abs(np.float32(rounded)) * np.float32(2.0**-112))
    body = np.uint32(np.uint32(small >> np.uint32(13)) & np.uint32(0x7FFF))
    if not np.abs(rounded) <= 65504.0:
        body = np.uint32(0x7C00) if rounded == rounded else np.uint32(0x7E00)
    memory.store_u16(address, index, np.uint16(sign | body))


single_float16 = store_float16_by_hardware if has_half_instructions() else None
store_float16 = store_float16_by_hardware if has_half_instructions() else store_float16_by_bits


def _integer(name: str) -> Encoder:
    kind = STORAGE[name].dtype
    write = getattr(memory, f"store_{kind.kind}{8 * kind.itemsize}")
    number = kind.type
    low, high = STORAGE[name].range

    @device_function
    def store(address: Any, index: Any, rounded: Any) -> None:
        write(address, index, number(np.int64(rounded)))

    return Encoder(kind.itemsize, round_integer, store, low, high)


ENCODERS: dict[str, Encoder] = {
    "float64": Encoder(8, round_float64, store_float64, *STORAGE["float64"].range),
    "float32": Encoder(4, round_float32, store_float32, *STORAGE["float32"].range, memory.store_f32),
    "float16": Encoder(2, _round_to(11, -24), store_float16, *STORAGE["float16"].range, single_float16),
    "bfloat16": Encoder(2, _round_to(8, -133), store_bfloat16, *STORAGE["bfloat16"].range, store_single_bfloat16),
    **{name: _integer(name) for name in INTEGERS},
}
"""How every dtype of a result is written, by its name."""
