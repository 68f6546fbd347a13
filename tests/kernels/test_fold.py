"""`fold` and `finish`: every dtype and accumulator against the oracle, however the operands lie in memory."""

import mmap
import tempfile
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from flcore_kernels import (
    ACCUMULATORS,
    STORAGE,
    Backend,
    BufferMismatch,
    Quantized,
    SpoiledTotal,
    UnknownDType,
    WeightRange,
    storage_dtype,
)

from tests.kernels.cases import BASES, EDGES, PAIRS, QUANTIZED, at_odd_address, draw, finished, folded, opened, state_of
from tests.reference import DTYPES, FLOATS, exact_mean, ulp

WEIGHTS = [1.0, 600.0, 0.25, 3.7, 0.0]


def require_close(
    found: npt.NDArray[np.float64], values: list[npt.NDArray[np.float64]], weights: list[float], result: str, real: str
) -> None:
    """Hold a float accumulator to its bound.

    Of K operands, each term has three roundings (weight, value, product) and takes part in at most K sums; the division
    adds two. So with u half an ulp of 1: (K + 5) · u of the mean magnitude, (K + 1) steps at the lower end of the
    accumulator's range, and half an ulp of the result.
    """
    info = np.finfo(real)
    for i in range(found.size):
        terms = [(Fraction(w), Fraction(float(v[i]))) for w, v in zip(weights, values, strict=True)]
        weight = sum((w for w, _ in terms), Fraction(0))
        truth = sum((w * x for w, x in terms), Fraction(0)) / weight
        magnitude = sum((w * abs(x) for w, x in terms), Fraction(0)) / weight
        bound = (len(terms) + 5) * Fraction(float(info.eps)) / 2 * magnitude + ulp(truth, result) * Fraction(51, 100)
        bound += (len(terms) + 1) * Fraction(float(info.smallest_subnormal))
        assert abs(Fraction(float(found[i])) - truth) <= bound


@pytest.mark.parametrize(("dtype", "accumulate"), PAIRS)
def test_every_dtype_and_accumulator_agrees_with_the_oracle_around_every_edge(
    device: Backend, dtype: str, accumulate: str
) -> None:
    result = "float32" if dtype in QUANTIZED else dtype
    for size in EDGES:
        rng = np.random.default_rng(size)
        cases = [draw(rng, dtype, size) for _ in WEIGHTS]
        total = folded(device, [c.operand for c in cases[:2]], WEIGHTS[:2], dtype, accumulate, size)
        device.fold(total, [c.operand for c in cases[2:]], WEIGHTS[2:], dtype)
        found = opened(finished(device, total, result), result)
        start = max(0, size - 65) // 64 * 64
        values = [c.values[start:] for c in cases]
        if accumulate == "exact":
            assert found[start:].tobytes() == exact_mean(values, WEIGHTS, result).tobytes()
        else:
            require_close(found[start:], values, WEIGHTS, result, accumulate)


def test_more_than_a_row_agrees_with_the_oracle_at_its_seams(device: Backend) -> None:
    size = 2**18 + 1
    rng = np.random.default_rng(3)
    cases = [draw(rng, "float32", size) for _ in range(3)]
    found = finished(
        device, folded(device, [c.operand for c in cases], WEIGHTS[:3], "float32", "exact", size), "float32"
    )
    for start in (0, 2**14 - 64, 2**14, 2**17, 2**18 - 64, 2**18):
        values = [c.values[start : start + 64] for c in cases]
        expected = exact_mean(values, WEIGHTS[:3], "float32")
        assert found[start : start + 64].astype(np.float64).tobytes() == expected.tobytes()


@pytest.mark.parametrize(("dtype", "accumulate"), PAIRS)
def test_parts_may_be_read_only_and_at_odd_addresses(device: Backend, dtype: str, accumulate: str) -> None:
    cases = [draw(np.random.default_rng(seed), dtype, 8193) for seed in range(5)]
    operands = [c.operand for c in cases]
    moved = [
        Quantized(at_odd_address(p.codes), at_odd_address(p.scales)) if dtype in QUANTIZED else at_odd_address(p)
        for p in operands
    ]
    expected = state_of(device, folded(device, operands, WEIGHTS, dtype, accumulate, 8193))
    assert state_of(device, folded(device, moved, WEIGHTS, dtype, accumulate, 8193)) == expected


def test_parts_may_be_mapped_from_a_file(device: Backend) -> None:
    values = np.arange(20_000, dtype=np.float32)
    with tempfile.TemporaryFile() as file:
        file.write(b"..." + values.tobytes())
        file.flush()
        mapped = np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), np.float32, values.size, 3)
        total = folded(device, [mapped] * 3, [2.0] * 3, "float32", "exact", values.size)
    assert np.array_equal(finished(device, total, "float32"), values)


@pytest.mark.parametrize(
    ("dtype", "accumulate"), [pair for pair in PAIRS if pair[0] in ("float32", "float16", "int8[64]")]
)
def test_tensors_of_a_part_lie_at_multiples_of_256(device: Backend, dtype: str, accumulate: str) -> None:
    sizes = [1, 0, 300, 256, 20_000, 63]
    places = np.cumsum([0] + [-(-size // 256) * 256 for size in sizes])
    rng = np.random.default_rng(5)
    clients = [[draw(rng, dtype, size) for size in sizes] for _ in range(5)]
    total = folded(
        device, [[c.operand for c in client] for client in clients], WEIGHTS, dtype, accumulate, int(places[-1])
    )
    whole = finished(device, total, "float32")
    outs = [np.full(size, np.nan, np.float32) for size in sizes]
    device.finish(total, outs, "float32")
    for index, (size, place) in enumerate(zip(sizes, places.tolist(), strict=False)):
        alone = folded(device, [client[index].operand for client in clients], WEIGHTS, dtype, accumulate, size)
        expected = finished(device, alone, "float32")
        assert expected.tobytes() == whole[place : place + size].tobytes() == outs[index].tobytes()
        assert not whole[place + size : places[index + 1]].any()


@pytest.mark.parametrize("accumulate", ACCUMULATORS)
def test_denormals_and_zeros_of_both_signs_are_values(device: Backend, accumulate: str) -> None:
    tiny = float(np.finfo(np.float32).smallest_subnormal)
    values = np.array([tiny, -tiny, 3 * tiny, 0.0, -0.0, 2.0**-126], np.float32)
    found = finished(device, folded(device, [values], [1.0], "float32", accumulate, 6), "float32")
    assert found.tolist() == values.tolist()
    assert not np.signbit(found[[3, 4]]).any()


def test_an_exact_total_of_nothing_but_minus_zero_is_plus_zero(device: Backend) -> None:
    found = finished(device, folded(device, [np.full(3, -0.0)] * 5, [2.0] * 5, "float64", "exact", 3), "float64")
    assert not np.signbit(found).any()


@pytest.mark.parametrize("accumulate", ACCUMULATORS)
def test_the_weights_of_zero_count_for_nothing_but_must_be_finite(device: Backend, accumulate: str) -> None:
    operands: list[Any] = [np.full(5, 1e30, np.float32), np.full(5, 2.0, np.float32)]
    found = finished(device, folded(device, operands, [0.0, 3.0], "float32", accumulate, 5), "float32")
    assert found.tolist() == [2.0] * 5
    total = folded(device, operands, [0.0, 0.0], "float32", accumulate, 5)
    with pytest.raises(WeightRange, match="sum of the weights is 0"):
        device.finish(total, np.empty(5, np.float32), "float32")
    device.fold(total, operands, [2.0**-60, 2.0**-60], "float32")
    assert finished(device, total, "float32").tolist() == [np.float32(5e29)] * 5


def test_nothing_and_no_parts_may_be_folded(device: Backend) -> None:
    for accumulate in ACCUMULATORS:
        total = device.total(10, accumulate)
        before = state_of(device, total)
        device.fold(total, [], [], "float32")
        assert state_of(device, total) == before
        device.fold(total, [[], []], [1.0, 1.0], "float32")
        assert total.terms == 2


@pytest.mark.parametrize("accumulate", ACCUMULATORS)
def test_buffers_that_do_not_fit_are_refused_and_the_total_stays(device: Backend, accumulate: str) -> None:
    good = np.ones(4, np.float32)
    total = folded(device, [good], [1.0], "float32", accumulate, 4)
    before = state_of(device, total)
    for operands, weights, words in (
        ([good, np.ones(3, np.float32)], [1.0, 1.0], "operand 1: expected a contiguous buffer of 4 float32"),
        ([np.ones(8, np.float32)[::2]], [1.0], "got strided float32"),
        ([np.ones(4)], [1.0], "got contiguous float64"),
        ([good], [], "one weight per operand"),
        ([np.ones(5, np.float32)], [1.0], "total's 4 elements; these reach to element 5"),
        ([[good, good]], [1.0], "reach to element 260"),
        ([good, [good, good]], [1.0, 1.0], "expected 1 buffers, got 2"),
        ([Quantized(np.ones(4, np.int8), np.ones(1, np.float32))], [1.0], "got Quantized"),
        ([[1.0, 2.0, 3.0, 4.0]], [1.0], "expected an array, Quantized, or a list of them, got a float"),
    ):
        with pytest.raises(BufferMismatch, match=words):
            device.fold(total, operands, weights, "float32")  # type: ignore[arg-type]
    quantized = Quantized(np.ones(4, np.int8), np.ones(2, np.float32))
    with pytest.raises(BufferMismatch, match="expected a contiguous buffer of 1 float32"):
        device.fold(total, [quantized], [1.0], "int8[32]")
    with pytest.raises(UnknownDType, match="complex64"):
        device.fold(total, [np.ones(4, np.complex64)], [1.0], "complex64")
    assert state_of(device, total) == before


def test_results_go_only_where_they_fit(device: Backend) -> None:
    total = folded(device, [np.ones(4, np.float32)], [1.0], "float32", "exact", 4)
    read_only = np.empty(4, np.float32)
    read_only.flags.writeable = False
    for out, dtype, words in (
        (read_only, "float32", "read-only"),
        (np.empty(5, np.float32), "float32", "reach to element 5"),
        (np.empty(4), "float32", "got contiguous float64"),
        (np.empty(4, np.int8), "int8[32]", "encode it afterwards"),
    ):
        with pytest.raises(BufferMismatch, match=words):
            device.finish(total, out, dtype)
    with pytest.raises(BufferMismatch, match="accumulate is one of"):
        device.total(4, "float16")
    with pytest.raises(SpoiledTotal):
        total.is_spoiled = True
        device.finish(total, np.empty(4, np.float32), "float32")


@pytest.mark.parametrize(("dtype", "accumulate"), [pair for pair in BASES if pair[0] not in QUANTIZED])
def test_a_base_is_added_before_the_only_rounding(device: Backend, dtype: str, accumulate: str) -> None:
    rng = np.random.default_rng(8)
    base, delta = draw(rng, dtype, 200), draw(rng, dtype, 200)
    if dtype in ("int16", "int32"):
        base, delta = (
            c._replace(operand=c.operand // 4, values=(c.operand // 4).astype(np.float64)) for c in (base, delta)
        )
    out = np.empty(200, storage_dtype(dtype))
    device.finish(folded(device, [delta.operand], [2.0], dtype, accumulate, 200), out, dtype, base.operand)
    for value, start, change in zip(opened(out, dtype), base.values, delta.values, strict=True):
        truth = Fraction(float(start)) + Fraction(float(change))
        slack = 4 * Fraction(float(np.finfo("float32" if accumulate == "float32" else "float64").eps))
        slack *= abs(Fraction(float(start))) + abs(Fraction(float(change)))
        slack += Fraction(float(np.abs(delta.values).max())) / 2**47 if accumulate == "exact" else 0
        assert abs(Fraction(float(value)) - truth) <= ulp(truth, dtype) / 2 + slack


def test_every_dtype_of_the_table_is_tested() -> None:
    assert set(STORAGE) == set(DTYPES) | set(QUANTIZED)


def test_every_dtype_meets_exact_sums_and_float_sums() -> None:
    assert {dtype for dtype, accumulate in PAIRS if accumulate == "exact"} == set(STORAGE)
    for real in ("float64", "float32"):
        met = {dtype for dtype, accumulate in PAIRS if accumulate == real}
        assert {*FLOATS, "int64", "uint64"} < met and met & set(QUANTIZED) and met & {"int8", "int16", "int32"}
    assert {dtype for dtype, accumulate in PAIRS if accumulate != "exact"} == set(STORAGE)
