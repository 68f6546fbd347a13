"""Every verb of the CPU backend, over every dtype, against the oracle."""

import mmap
import tempfile
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from flcore_kernels import STORAGE, BackendUnavailable, BufferMismatch, UnknownDType, backend, storage_dtype
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.reference import DTYPES, FLOATS, INTEGERS, nearest, stored, ulp, weighted_mean

CPU = backend("cpu")
SIZES = [0, 1, 7, 255, 256, 257, 16_384, 16_385]


def values(rng: np.random.Generator, dtype: str, size: int) -> npt.NDArray[Any]:
    """Draw values that cover a dtype's everyday range, zeros and denormals among them."""
    if dtype in INTEGERS:
        info = np.iinfo(dtype)
        return rng.integers(max(info.min, -(2**40)), min(info.max, 2**40), size, INTEGERS[dtype], endpoint=True)
    drawn = (rng.standard_normal(size) * 10.0 ** rng.integers(-9, 4, size)).astype(FLOATS[dtype])
    drawn[rng.random(size) < 0.1] = 0
    return drawn


def mean(parts: list[npt.NDArray[Any]], weights: list[float], dtype: str) -> npt.NDArray[Any]:
    total = np.zeros(parts[0].size)
    CPU.fold(total, [stored(part) for part in parts], weights, dtype)
    out = np.empty(parts[0].size, storage_dtype(dtype))
    assert CPU.finish(total, sum(weights), out, dtype) == -1
    return out.view(DTYPES[dtype])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", SIZES)
def test_mean_is_within_rounding_of_the_exact_mean(dtype: str, size: int) -> None:
    rng = np.random.default_rng(size)
    parts = [values(rng, dtype, size) for _ in range(3)]
    weights = [1.0, 600.0, 0.25]
    found = mean(parts, weights, dtype)
    looked_at = slice(max(0, size - 64), size)
    exact = weighted_mean([part[looked_at] for part in parts], weights)
    largest = [max(abs(Fraction(float(part[looked_at][i]))) for part in parts) for i in range(len(exact))]
    for value, truth, magnitude in zip(found[looked_at], exact, largest, strict=True):
        # Half an ulp of the output, and eight roundings of a float64 sum.
        bound = ulp(truth, dtype) / 2 + 8 * magnitude * Fraction(1, 2**53)
        assert abs(Fraction(float(value)) - truth) <= bound


@pytest.mark.parametrize("dtype", DTYPES)
def test_one_part_comes_back_as_it_went_in(dtype: str) -> None:
    part = values(np.random.default_rng(1), dtype, 4096)
    assert np.array_equal(mean([part], [1.0], dtype), part)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_every_16_bit_pattern_is_decoded(dtype: str) -> None:
    patterns = np.arange(65_536, dtype=np.uint16)
    finite = patterns[(patterns & STORAGE[dtype].magnitude_mask) < STORAGE[dtype].infinity]
    total = np.zeros(finite.size)
    CPU.fold(total, [finite], [1.0], dtype)
    assert np.array_equal(total, finite.view(FLOATS[dtype]).astype(np.float64))
    out = np.empty(finite.size, np.uint16)
    assert CPU.finish(total, 1.0, out, dtype) == -1
    assert np.array_equal(out.view(FLOATS[dtype]), finite.view(FLOATS[dtype]))


@pytest.mark.parametrize("dtype", FLOATS)
@given(value=st.floats(allow_nan=False, allow_infinity=False))
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.differing_executors])
def test_finish_rounds_once_to_nearest_even(dtype: str, value: float) -> None:
    out = np.empty(1, storage_dtype(dtype))
    bad = CPU.finish(np.array([value]), 1.0, out, dtype)
    found = out.view(FLOATS[dtype])[0]
    limit = float(ml_limit(dtype))
    if bad == 0:
        assert abs(value) > limit
    else:
        best = nearest(Fraction(value), dtype)
        assert found in best
        if len(best) == 2:
            assert int(out.view(STORAGE[dtype].bits)[0]) % 2 == 0


def ml_limit(dtype: str) -> Any:
    """The largest finite value of a float dtype."""
    row = STORAGE[dtype]
    return np.array([row.infinity - 1], row.bits).view(FLOATS[dtype])[0]


def test_a_double_rounding_would_be_wrong() -> None:
    # Just above the middle of two bfloat16 neighbours: float32 would round it to the middle, and then down to even.
    value = 1.0 + 2.0**-8 + 2.0**-40
    out = np.empty(1, np.uint16)
    CPU.finish(np.array([value]), 1.0, out, "bfloat16")
    assert float(out.view(FLOATS["bfloat16"])[0]) == 1.0 + 2.0**-7


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_base_is_added_before_rounding(dtype: str) -> None:
    base = values(np.random.default_rng(2), dtype, 100) if dtype in FLOATS else np.arange(100).astype(DTYPES[dtype])
    delta = np.ones(100, DTYPES[dtype])
    total = np.zeros(100)
    CPU.fold(total, [stored(delta)], [2.0], dtype)
    out = np.empty(100, storage_dtype(dtype))
    CPU.finish(total, 2.0, out, dtype, stored(base))
    for value, start in zip(out.view(DTYPES[dtype]), base, strict=True):
        assert abs(Fraction(float(value)) - Fraction(float(start)) - 1) <= ulp(Fraction(float(start)) + 1, dtype) / 2


def test_integers_round_half_to_even_and_are_refused_out_of_range() -> None:
    out = np.empty(4, np.int8)
    assert CPU.finish(np.array([0.5, 1.5, 2.5, -0.5]), 1.0, out, "int8") == -1
    assert out.tolist() == [0, 2, 2, 0]
    assert CPU.finish(np.array([0.0, 127.4, 127.6, 0.0]), 1.0, out, "int8") == 2
    assert CPU.finish(np.array([0.0, -1.0]), 1.0, np.empty(2, np.uint8), "uint8") == 1


@pytest.mark.parametrize(("dtype", "value"), [("float32", 3.5e38), ("float16", 65_520.0), ("bfloat16", 3.4e38)])
def test_a_mean_that_overflows_is_reported(dtype: str, value: float) -> None:
    out = np.empty(3, storage_dtype(dtype))
    assert CPU.finish(np.array([0.0, value, value]), 1.0, out, dtype) == 1


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_inspect_finds_the_first_bad_element_and_the_largest_magnitude(dtype: str, bad: float) -> None:
    part = np.linspace(-3, 2, 1000).astype(FLOATS[dtype])
    assert CPU.inspect(stored(part), dtype) == (-1, 3.0)
    part[[700, 800]] = bad
    assert CPU.inspect(stored(part), dtype) == (700, 3.0)


@pytest.mark.parametrize("dtype", INTEGERS)
def test_inspect_knows_the_extremes_of_integers(dtype: str) -> None:
    info = np.iinfo(dtype)
    part = np.array([info.min, 0, info.max], INTEGERS[dtype])
    assert CPU.inspect(part, dtype) == (-1, float(max(-info.min, info.max)))


@pytest.mark.parametrize("dtype", DTYPES)
def test_nothing_is_inspected_folded_and_finished_too(dtype: str) -> None:
    empty = np.empty(0, storage_dtype(dtype))
    assert CPU.inspect(empty, dtype) == (-1, 0.0)
    CPU.fold(np.empty(0), [empty], [1.0], dtype)
    assert CPU.finish(np.empty(0), 1.0, empty, dtype) == -1


def test_parts_may_be_read_only_and_mapped() -> None:
    with tempfile.TemporaryFile() as file:
        file.write(np.arange(1000, dtype=np.float32).tobytes())
        file.flush()
        mapped = np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), np.float32)
        total = np.zeros(1000)
        CPU.fold(total, [mapped], [2.0], "float32")
    assert total.tolist() == [2.0 * i for i in range(1000)]


def test_ten_thousand_ones_in_float16_average_to_one() -> None:
    one = np.ones(4, np.float16).view(np.uint16)
    total = np.zeros(4)
    for _ in range(100):
        CPU.fold(total, [one] * 100, [1e5] * 100, "float16")
    out = np.empty(4, np.uint16)
    assert CPU.finish(total, 1e5 * 10_000, out, "float16") == -1
    assert out.view(np.float16).tolist() == [1.0] * 4


def test_buffers_that_do_not_fit_are_refused() -> None:
    total = np.zeros(4)
    with pytest.raises(BufferMismatch, match="part 1: expected a contiguous buffer of 4 float32"):
        CPU.fold(total, [np.ones(4, np.float32), np.ones(3, np.float32)], [1.0, 1.0], "float32")
    with pytest.raises(BufferMismatch, match="got strided"):
        CPU.fold(total, [np.ones(8, np.float32)[::2]], [1.0], "float32")
    with pytest.raises(BufferMismatch, match="one weight a part"):
        CPU.fold(total, [np.ones(4, np.float32)], [], "float32")
    with pytest.raises(BufferMismatch, match="must be > 0"):
        CPU.finish(total, 0.0, np.empty(4), "float64")
    with pytest.raises(UnknownDType, match="complex64"):
        CPU.inspect(np.ones(4, np.complex64), "complex64")
    with pytest.raises(BackendUnavailable, match="'cuda'"):
        backend("cuda")
