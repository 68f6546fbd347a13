"""Encoders and decoders: against NumPy's and ml_dtypes' casts, and within the bound that is promised."""

from typing import Any

import numba
import numpy as np
import numpy.typing as npt
import pytest
from flcore_kernels import STORAGE, Backend, BufferMismatch, NotFinite, Quantized, backend, storage_dtype
from flcore_kernels.cpu import decode as cpu_decode
from flcore_kernels.cpu import encode as cpu_encode
from flcore_kernels.cpu import memory

from tests.kernels.cases import EDGES, PAIRS, QUANTIZED, at_odd_address, draw, finished, folded
from tests.reference import DTYPES, dequantized

HALVES = ["float16", "bfloat16"]


def encoded(device: Backend, values: npt.NDArray[np.float32], dtype: str) -> Any:
    out: Any = np.full(values.size, 99, storage_dtype(dtype))
    if block := STORAGE[dtype].block:
        out = Quantized(out, np.full(-(-values.size // block), np.nan, np.float32))
    device.encode(values, out, dtype)
    return out


def decoded(device: Backend, operand: Any, dtype: str, size: int) -> npt.NDArray[np.float32]:
    out = np.empty(size, np.float32)
    device.decode(operand, out, dtype)
    return out


@np.errstate(all="ignore")
def require_cast(device: Backend, values: npt.NDArray[np.float32], dtype: str) -> None:
    expected = values.astype(DTYPES[dtype]).view(np.uint16)
    found = encoded(device, values, dtype)
    number = ~np.isnan(values)
    assert np.array_equal(found[number], expected[number])
    assert np.isnan(found.view(DTYPES[dtype])[~number].astype(np.float64)).all()


@pytest.mark.parametrize("dtype", HALVES)
@np.errstate(invalid="ignore")
def test_every_value_every_middle_and_what_lies_beside_it_is_rounded_to_nearest_even(
    device: Backend, dtype: str
) -> None:
    patterns = np.arange(65_536, dtype=np.uint16)
    magnitudes = np.sort(np.abs(patterns.view(DTYPES[dtype]).astype(np.float64)))
    magnitudes = np.unique(magnitudes[np.isfinite(magnitudes)])
    middles = ((magnitudes[1:] + magnitudes[:-1]) / 2).astype(np.float32)
    overflow = (magnitudes[-1:] + (magnitudes[-1:] - magnitudes[-2:-1]) / 2).astype(np.float32)
    both = np.concatenate([magnitudes.astype(np.float32), middles, overflow])
    up, down = np.nextafter(both, np.float32(np.inf)), np.nextafter(both, np.float32(0))
    values = np.concatenate([both, up, down])
    require_cast(device, np.concatenate([values, -values]), dtype)


@pytest.mark.parametrize("dtype", HALVES)
def test_all_kinds_of_floats_are_rounded_as_a_cast_does(device: Backend, dtype: str) -> None:
    bits = np.random.default_rng(6).integers(0, 2**32, 300_000, np.uint32)
    special = np.array([0, 1, 0x7F800000, 0x7F800001, 0x7FFFFFFF, 0x7FC00000, 0x7F7FFFFF, 0x00800000], np.uint32)
    require_cast(device, np.concatenate([bits, special, special | 0x80000000]).view(np.float32), dtype)


@pytest.mark.parametrize("dtype", HALVES)
@np.errstate(invalid="ignore")
def test_every_half_is_decoded_to_its_value(device: Backend, dtype: str) -> None:
    patterns = np.arange(65_536, dtype=np.uint16)
    expected = patterns.view(DTYPES[dtype]).astype(np.float32)
    assert np.array_equal(decoded(device, patterns, dtype, 65_536), expected, equal_nan=True)
    assert np.array_equal(decoded(device, at_odd_address(patterns), dtype, 65_536), expected, equal_nan=True)


@pytest.mark.parametrize("dtype", QUANTIZED)
def test_codes_are_the_nearest_multiples_of_their_scale(device: Backend, dtype: str) -> None:
    block = STORAGE[dtype].block
    for size in EDGES:
        values = draw(np.random.default_rng(size), "float32", size).values.astype(np.float32)
        codes, scales = encoded(device, values, dtype)
        padded = np.zeros(scales.size * block, np.float32)
        padded[:size] = values
        top = np.abs(padded.reshape(-1, block)).max(axis=1, initial=0)
        expected = top / np.float32(127)
        expected[expected < np.finfo(np.float32).tiny] = 0
        assert np.array_equal(scales, expected)
        each = np.repeat(scales, block)[:size]
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio = np.where(each > 0, values / each, 0)
        assert np.array_equal(codes, np.rint(ratio))


@pytest.mark.parametrize("dtype", QUANTIZED)
def test_a_value_comes_back_within_the_bound_that_is_promised(device: Backend, dtype: str) -> None:
    block = STORAGE[dtype].block
    rng = np.random.default_rng(9)
    for scale in (1e-30, 1.0, 1e30):
        values = (rng.standard_normal(block * 50 + 7) * scale).astype(np.float32)
        operand = encoded(device, values, dtype)
        back = decoded(device, operand, dtype, values.size)
        each = np.repeat(operand.scales, block)[: values.size].astype(np.float64)
        off = np.abs(values.astype(np.float64) - back.astype(np.float64))
        assert (off <= (0.5 + 2.0**-16) * each).all()
        # The promise is not idle: some value is off by nearly half a scale.
        assert (off > 0.49 * each).any()


@pytest.mark.parametrize("dtype", QUANTIZED)
def test_a_code_is_worth_the_same_when_decoded_and_when_folded(device: Backend, dtype: str) -> None:
    block = STORAGE[dtype].block
    rng = np.random.default_rng(10)
    codes = np.resize(np.arange(-128, 128).astype(np.int8), 256 * 4 + 33)
    operand = Quantized(codes, rng.standard_normal(-(-codes.size // block)).astype(np.float32))
    back = decoded(device, operand, dtype, codes.size)
    assert np.array_equal(back, dequantized(*operand, block))
    for accumulate in [accumulate for each, accumulate in PAIRS if each == dtype]:
        total = folded(device, [operand], [1.0], dtype, accumulate, codes.size)
        assert np.array_equal(finished(device, total, "float32"), back)


def test_zero_and_tiny_blocks_become_zeros_and_full_ones_reach_127(device: Backend) -> None:
    values = np.zeros(4 * 32 + 5, np.float32)
    values[32:64] = 126.0 * np.finfo(np.float32).tiny
    values[64:96] = np.linspace(-127, 127, 32)
    values[96:128] = np.finfo(np.float32).max
    codes, scales = encoded(device, values, "int8[32]")
    largest = np.nextafter(np.finfo(np.float32).max / np.float32(127), np.float32(0))
    assert scales.tolist() == [0.0, 0.0, 1.0, float(largest), 0.0]
    assert np.isfinite(decoded(device, Quantized(codes, scales), "int8[32]", values.size)).all()
    assert not codes[:64].any()
    assert (codes[64], codes[95]) == (-127, 127)
    assert (codes[96:128] == 127).all()
    assert not decoded(device, Quantized(codes, scales), "int8[32]", values.size)[:64].any()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_not_quantized(device: Backend, bad: float) -> None:
    values = np.ones(300_000, np.float32)
    values[[270_001, 270_002]] = bad
    with pytest.raises(NotFinite, match="element 270001") as caught:
        encoded(device, values, "int8[256]")
    assert np.array_equal([caught.value.value], [bad], equal_nan=True)


@pytest.mark.parametrize("dtype", [*HALVES, *QUANTIZED])
def test_long_and_misaligned_values_give_the_same_bits_on_any_number_of_threads(device: Backend, dtype: str) -> None:
    values = draw(np.random.default_rng(3), "float32", 600_001).operand
    first, second = encoded(device, values, dtype), encoded(device, at_odd_address(values), dtype)
    third: Any = np.empty_like(first) if dtype in HALVES else Quantized(*map(np.empty_like, first))
    backend("cpu", threads=3).encode(values, third, dtype)
    for one, *others in [(first, second, third)] if dtype in HALVES else zip(first, second, third, strict=True):
        assert all(one.tobytes() == other.tobytes() for other in others)


def test_integers_are_decoded_to_the_nearest_float32(device: Backend) -> None:
    values = np.array([0, -5, 2**24 + 1, 2**52], np.int64)
    assert decoded(device, values, "int64", 4).tolist() == values.astype(np.float32).tolist()


def test_what_does_not_fit_is_refused_and_read_only_memory_is_not_written(device: Backend) -> None:
    values = np.ones(64, np.float32)
    with pytest.raises(BufferMismatch, match="expected bfloat16, float16 or a quantized dtype"):
        device.encode(values, np.empty(64, np.float64), "float64")
    with pytest.raises(BufferMismatch, match="out: expected"):
        device.encode(values, np.empty(63, np.uint16), "bfloat16")
    with pytest.raises(BufferMismatch, match="values: expected"):
        device.encode(np.ones(64), np.empty(64, np.uint16), "bfloat16")  # type: ignore[arg-type]
    for dtype in ("bfloat16", "int8[64]"):
        out = encoded(device, values, dtype)
        (out.codes if isinstance(out, Quantized) else out).flags.writeable = False
        with pytest.raises(BufferMismatch, match="read-only"):
            device.encode(values * 2, out, dtype)
    values.flags.writeable = False
    with pytest.raises(BufferMismatch, match="read-only"):
        device.decode(np.zeros(64, np.uint16), values, "bfloat16")
    assert (values == 1).all()


@np.errstate(invalid="ignore")
def test_the_ways_without_half_instructions_agree_with_those_that_have_them() -> None:
    size = 65_536

    def both(values: Any, halves: Any, back: Any) -> None:
        for i in range(size):
            cpu_encode.store_float16_by_bits(halves, i, np.float64(memory.load_f32(values, i)))
            memory.store_f32(back, i, cpu_decode.float16_value_by_bits(halves, np.float32(1.0), i))

    patterns = np.arange(size, dtype=np.uint16)
    values = patterns.view(np.float16).astype(np.float32)
    halves, back = np.zeros(size, np.uint16), np.zeros(size, np.float32)
    numba.njit(both)(*(np.uint64(array.__array_interface__["data"][0]) for array in (values, halves, back)))
    number = ~np.isnan(values)
    assert np.array_equal(halves[number], patterns[number])
    assert np.array_equal(back, values, equal_nan=True)
