"""`inspect` and `largest`: the first bad element, and the largest magnitude."""

from typing import Any

import numpy as np
import pytest
from flcore_kernels import STORAGE, Backend, BufferMismatch, Inspection, Quantized, UnknownDType, backend, storage_dtype

from tests.kernels.cases import QUANTIZED, draw
from tests.reference import FLOATS, INTEGERS, stored


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_the_first_bad_element_is_found_beside_the_largest_good_one(device: Backend, dtype: str, bad: float) -> None:
    for first, second in ((700, 800), (0, 9999), (4095, 4096), (16_383, 16_384), (32_768, 20_000), (40_000, 40_000)):
        operand = np.linspace(-3, 2, 40_001).astype(FLOATS[dtype])
        operand[[first, second]] = bad
        operand[[3000, 6000]] = [-3.0, 2.0]
        assert device.inspect(stored(operand), dtype) == Inspection(min(first, second), 3.0)


@pytest.mark.parametrize("dtype", FLOATS)
def test_a_part_of_bad_elements_alone_has_no_magnitude(device: Backend, dtype: str) -> None:
    operand = np.full(70_000, np.nan, FLOATS[dtype])
    assert device.inspect(stored(operand), dtype) == Inspection(0, 0.0)


@pytest.mark.parametrize("dtype", STORAGE)
def test_the_magnitude_is_that_of_the_values(device: Backend, dtype: str) -> None:
    for size in (1, 63, 65, 4095, 4096, 4097, 10_007, 65_537, 131_072):
        drawn = draw(np.random.default_rng(size), dtype, size)
        assert device.inspect(drawn.operand, dtype) == Inspection(-1, float(np.abs(drawn.values).max()))


@pytest.mark.parametrize("dtype", STORAGE)
def test_the_largest_of_each_part_is_found_in_one_call(device: Backend, dtype: str) -> None:
    sizes = (1, 300, 0, 70_001)
    drawn = [[draw(np.random.default_rng((client, size)), dtype, size) for size in sizes] for client in range(3)]
    found = device.max_abs([[buffer.operand for buffer in client] for client in drawn], dtype)
    assert found == [max(float(np.abs(buffer.values).max(initial=0.0)) for buffer in client) for client in drawn]
    assert device.max_abs([], dtype) == []


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_part_that_is_not_finite_has_no_finite_largest(device: Backend, dtype: str, bad: float) -> None:
    good, other = (np.linspace(-3, 2, 600_000).astype(FLOATS[dtype]) for _ in range(2))
    for place in (0, 4096, 599_999):
        operand = good.copy()
        operand[place] = bad
        found = device.max_abs([stored(other), stored(operand), stored(good)], dtype)
        assert found[0] == found[2] == 3.0 and not np.isfinite(found[1])


@pytest.mark.parametrize("dtype", INTEGERS)
def test_the_extremes_of_integers_are_their_magnitudes(device: Backend, dtype: str) -> None:
    storage = storage_dtype(dtype)
    for value in (0, 1) if dtype == "bool" else (np.iinfo(dtype).min, np.iinfo(dtype).max):
        operand = np.array([0, value], storage)
        assert device.inspect(operand, dtype).magnitude == float(abs(int(value)))
        assert device.max_abs([operand], dtype) == [float(abs(int(value)))]
    if storage.itemsize == 8:
        assert device.inspect(np.array([2**53 + 1], dtype), dtype).magnitude > 2**53


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8[32]"])
def test_pieces_and_threads_find_the_same(dtype: str) -> None:
    size = (1 << 20) + 70 * 4096 + 77
    drawn = draw(np.random.default_rng(2), dtype, size)
    array = drawn.operand.scales if dtype in QUANTIZED else drawn.operand
    array[-1] = np.uint16(0x7FC0) if dtype == "bfloat16" else np.nan
    first = (size - 1) // 32 * 32 if dtype in QUANTIZED else size - 1
    expected = Inspection(first, float(np.abs(drawn.values[:first]).max()))
    for threads in (1, 3):
        assert backend("cpu", threads=threads).inspect(drawn.operand, dtype) == expected


@pytest.mark.parametrize("dtype", STORAGE)
def test_nothing_has_no_magnitude(device: Backend, dtype: str) -> None:
    empty: Any = np.empty(0, storage_dtype(dtype))
    if dtype in QUANTIZED:
        empty = Quantized(empty, np.empty(0, np.float32))
    assert device.inspect(empty, dtype) == Inspection(-1, 0.0)


@pytest.mark.parametrize("extreme", [np.finfo(np.float64).max, 5e-324])
def test_the_extremes_of_float64_are_finite(device: Backend, extreme: float) -> None:
    assert device.inspect(np.array([0.0, -extreme]), "float64") == Inspection(-1, extreme)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_scale_that_is_not_finite_spoils_its_block(device: Backend, bad: float) -> None:
    codes = np.zeros(100, np.int8)
    codes[0], codes[40] = 3, 1
    scales = np.array([2, bad, 1, 1], np.float32)
    assert device.inspect(Quantized(codes, scales), "int8[32]") == Inspection(32, 6.0)


def test_what_is_no_buffer_of_the_dtype_is_refused(device: Backend) -> None:
    with pytest.raises(BufferMismatch, match="got strided"):
        device.inspect(np.ones(8, np.float32)[::2], "float32")
    with pytest.raises(UnknownDType, match="complex64"):
        device.inspect(np.ones(4, np.complex64), "complex64")
