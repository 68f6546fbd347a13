"""`inspect`: the first bad element, the largest magnitude, and a sum of squares that no cut changes."""

from fractions import Fraction
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from flcore_kernels import STORAGE, Backend, BufferMismatch, Inspection, Quantized, UnknownDType, backend, storage_dtype

from tests.kernels.cases import QUANTIZED, case, draw
from tests.reference import FLOATS, INTEGERS, stored

TILE = 4096


def told(found: Inspection) -> tuple[int, float, Fraction | None]:
    return found.first_bad, found.magnitude, found.squares


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_the_first_bad_element_is_found_beside_the_largest_good_one(device: Backend, dtype: str, bad: float) -> None:
    for first, second in ((700, 800), (0, 9999), (4095, 4096), (9999, 9999)):
        part = np.linspace(-3, 2, 10_001).astype(FLOATS[dtype])
        part[[first, second]] = bad
        part[[3000, 6000]] = [-3.0, 2.0]
        assert told(device.inspect(stored(part), dtype)) == (first, 3.0, None)


@pytest.mark.parametrize("dtype", STORAGE)
def test_magnitude_and_squares_are_those_of_the_values(device: Backend, dtype: str) -> None:
    for size in (1, 63, 65, 4095, 4096, 4097, 10_007):
        drawn = draw(np.random.default_rng(size), dtype, size)
        found = device.inspect(drawn.part, dtype)
        assert (found.first_bad, found.magnitude) == (-1, float(np.abs(drawn.values).max()))
        exact = sum(Fraction(float(v)) ** 2 for v in drawn.values[:TILE])
        assert found.squares is not None
        if size <= TILE:
            assert abs(found.squares - exact) <= exact * Fraction(80, 2**53)


@pytest.mark.parametrize("dtype", STORAGE)
def test_the_largest_of_each_part_is_found_in_one_call(device: Backend, dtype: str) -> None:
    sizes = (1, 300, 0, 70_001)
    drawn = [[draw(np.random.default_rng((client, size)), dtype, size) for size in sizes] for client in range(3)]
    found = device.largest([[buffer.part for buffer in client] for client in drawn], dtype)
    assert found == [max(float(np.abs(buffer.values).max(initial=0.0)) for buffer in client) for client in drawn]
    assert device.largest([], dtype) == []


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_part_that_is_not_finite_has_no_finite_largest(device: Backend, dtype: str, bad: float) -> None:
    good, other = (np.linspace(-3, 2, 600_000).astype(FLOATS[dtype]) for _ in range(2))
    for place in (0, 4096, 599_999):
        part = good.copy()
        part[place] = bad
        found = device.largest([stored(other), stored(part), stored(good)], dtype)
        assert found[0] == found[2] == 3.0 and not np.isfinite(found[1])


@pytest.mark.parametrize("dtype", INTEGERS)
def test_the_extremes_of_integers_are_their_magnitudes(device: Backend, dtype: str) -> None:
    storage = storage_dtype(dtype)
    for value in (0, 1) if dtype == "bool" else (np.iinfo(dtype).min, np.iinfo(dtype).max):
        part = np.array([0, value], storage)
        assert device.inspect(part, dtype).magnitude == float(abs(int(value)))
        assert device.largest([part], dtype) == [float(abs(int(value)))]
    if storage.itemsize == 8:
        assert device.inspect(np.array([2**53 + 1], dtype), dtype).magnitude > 2**53


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16", "int8[32]", "int8[256]", "int32"])
def test_squares_add_up_over_pieces_cut_at_tiles_and_over_threads(device: Backend, dtype: str) -> None:
    size = 70 * TILE + 77
    drawn = draw(np.random.default_rng(2), dtype, size)
    whole = device.inspect(drawn.part, dtype)

    def piece(start: int, stop: int) -> Any:
        if dtype not in QUANTIZED:
            return drawn.part[start:stop]
        block = STORAGE[dtype].block
        return Quantized(drawn.part.codes[start:stop], drawn.part.scales[start // block : -(-stop // block)])

    cuts = [0, TILE, 5 * TILE, 64 * TILE, 69 * TILE, size]
    pieces = [device.inspect(piece(*cut), dtype) for cut in pairwise(cuts)]
    assert whole.squares == sum(p.squares for p in pieces if p.squares is not None)
    assert whole.magnitude == max(p.magnitude for p in pieces)
    for threads in (1, 3):
        assert told(backend("cpu", threads=threads).inspect(drawn.part, dtype)) == told(whole)


@pytest.mark.parametrize("dtype", STORAGE)
def test_nothing_has_no_magnitude(device: Backend, dtype: str) -> None:
    empty: Any = np.empty(0, storage_dtype(dtype))
    if dtype in QUANTIZED:
        empty = Quantized(empty, np.empty(0, np.float32))
    assert told(device.inspect(empty, dtype)) == (-1, 0.0, Fraction(0))


def test_squares_too_large_for_float64_are_not_told(device: Backend) -> None:
    assert told(device.inspect(np.array([1e200, 1.0]), "float64")) == (-1, 1e200, None)
    tiny = case(np.full(5, 1e-200))
    assert told(device.inspect(tiny.part, "float64")) == (-1, 1e-200, Fraction(0))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_scale_that_is_not_finite_spoils_its_block(device: Backend, bad: float) -> None:
    codes = np.zeros(100, np.int8)
    codes[0], codes[40] = 3, 1
    scales = np.array([2, bad, 1, 1], np.float32)
    assert told(device.inspect(Quantized(codes, scales), "int8[32]")) == (32, 6.0, None)


def test_what_is_no_buffer_of_the_dtype_is_refused(device: Backend) -> None:
    with pytest.raises(BufferMismatch, match="got strided"):
        device.inspect(np.ones(8, np.float32)[::2], "float32")
    with pytest.raises(UnknownDType, match="complex64"):
        device.inspect(np.ones(4, np.complex64), "complex64")
