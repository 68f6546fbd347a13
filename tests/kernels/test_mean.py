"""`mean`: the same bits as `fold` and `finish`; the traps of narrow dtypes; and what is refused, by name."""

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from flcore_kernels import (
    ACCUMULATORS,
    STORAGE,
    Backend,
    BufferMismatch,
    KernelError,
    NotFinite,
    Overflow,
    SpoiledTotal,
    WeightRange,
    storage_dtype,
)

from tests.kernels.cases import BASES, EDGES, PAIRS, QUANTIZED, RESULTS, case, draw, finished, folded, mean, opened
from tests.reference import DTYPES, FLOATS, exact_mean, stored

WEIGHTS = [1.0, 600.0, 0.25, 3.7, 0.0]


@pytest.mark.parametrize(("dtype", "accumulate"), PAIRS)
def test_one_pass_gives_the_bits_of_two(device: Backend, dtype: str, accumulate: str) -> None:
    result = "float32" if dtype in QUANTIZED else dtype
    for size in EDGES:
        rng = np.random.default_rng(size + 1)
        operands = [draw(rng, dtype, size).operand for _ in WEIGHTS]
        total = folded(device, operands, WEIGHTS, dtype, accumulate, size)
        once = mean(device, operands, WEIGHTS, dtype, accumulate, result, size)
        assert once.tobytes() == finished(device, total, result).tobytes()


@pytest.mark.parametrize(("dtype", "result"), RESULTS)
def test_a_result_may_have_another_dtype_and_is_still_rounded_once(device: Backend, dtype: str, result: str) -> None:
    rng = np.random.default_rng(11)
    values = [(rng.uniform(-100, 100, 130) * 2.0 ** -rng.integers(0, 9, 130)).astype(DTYPES[dtype]) for _ in range(4)]
    cases = [case(v) for v in values]
    for weights in ([1.0] * 4, [0.1, 0.7, 3.0, 2.0**-30]):
        found = mean(device, [c.operand for c in cases], weights, dtype, "exact", result, 130)
        assert opened(found, result).tobytes() == exact_mean([c.values for c in cases], weights, result).tobytes()


WIDER_THAN_FLOAT32 = ("float64", "int32", "uint32", "int64", "uint64")


@pytest.mark.parametrize(
    ("dtype", "accumulate"),
    [(d, a) for d, a in PAIRS if d in DTYPES and (a != "float32" or d not in WIDER_THAN_FLOAT32)],
)
def test_one_part_comes_back_as_it_went_in(device: Backend, dtype: str, accumulate: str) -> None:
    drawn = draw(np.random.default_rng(1), dtype, 4096)
    found = opened(mean(device, [drawn.operand], [1.0], dtype, accumulate, dtype, 4096), dtype)
    if accumulate != "exact":
        assert np.array_equal(found, drawn.values)
    for start in range(0, 4096, 64):
        block = drawn.values[start : start + 64]
        # What lies 2^-48 below the largest of its block of an exact sum is cut off.
        assert (np.abs(found[start : start + 64] - block) <= 2.0**-48 * np.abs(block).max()).all()


@pytest.mark.parametrize("accumulate", ACCUMULATORS)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_every_16_bit_pattern_is_read_and_written(device: Backend, dtype: str, accumulate: str) -> None:
    patterns = np.arange(65_536, dtype=np.uint16)
    finite = patterns[(patterns & STORAGE[dtype].magnitude_mask) < STORAGE[dtype].infinity]
    found = mean(device, [finite], [1.0], dtype, accumulate, dtype, finite.size)
    assert np.array_equal(found, np.where(finite == 0x8000, 0, finite))


@pytest.mark.parametrize("accumulate", ACCUMULATORS)
def test_float16_takes_weights_that_it_could_not_hold_and_ten_thousand_clients(
    device: Backend, accumulate: str
) -> None:
    ones, large = np.ones(4, np.float16).view(np.uint16), np.full(4, 65504, np.float16).view(np.uint16)
    found = mean(device, [large, large], [1e5, 1e5], "float16", accumulate, "float16", 4)
    assert found.view(np.float16).tolist() == [65504.0] * 4
    found = mean(device, [ones] * 10_000, [1e5] * 10_000, "float16", accumulate, "float16", 4)
    assert found.view(np.float16).tolist() == [1.0] * 4
    total = device.total(4, accumulate)
    for _ in range(100):
        device.fold(total, [ones] * 100, [1.0] * 100, "float16")
    assert finished(device, total, "float16").view(np.float16).tolist() == [1.0] * 4


@pytest.mark.parametrize("accumulate", ACCUMULATORS)
@pytest.mark.parametrize("dtype", ["int64", "uint64"])
def test_integers_beyond_2_to_the_53_are_refused(device: Backend, dtype: str, accumulate: str) -> None:
    limit = 2**53
    for value in (limit + 1, limit + 2, 2**60, *([-limit - 1, -(2**63)] if dtype == "int64" else [2**64 - 1])):
        operand = np.zeros(9000, dtype)
        operand[8999] = value
        total = device.total(9000, accumulate)
        operands: list[Any] = [np.zeros(9000, dtype), operand]
        out = np.empty(9000, dtype)
        with pytest.raises(Overflow, match="beyond the limit") as caught:
            device.fold(total, operands, [1.0, 1.0], dtype)
        assert (caught.value.operand, caught.value.element) == (1, 8999)
        with pytest.raises(Overflow, match="beyond the limit") as caught:
            device.mean(operands, [1.0, 1.0], out, dtype, accumulate)
        assert (caught.value.operand, caught.value.element) == (1, 8999)
    edge = np.array([limit, 0], dtype)
    if accumulate != "float32":
        assert mean(device, [edge], [1.0], dtype, accumulate, dtype, 2).tolist() == edge.tolist()


@pytest.mark.parametrize("accumulate", ["float64", "float32"])
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_weights_that_are_all_tiny_or_one_of_them_huge_lose_nothing(
    device: Backend, dtype: str, accumulate: str
) -> None:
    operands = [np.full(3, 1.0, dtype), np.full(3, 3.0, dtype)]
    two = pytest.approx([2.0] * 3, rel=float(np.finfo(accumulate).eps))
    for weights in ([1e-30] * 2, [1e-300] * 2, [1e300] * 2, [5e-324] * 2):
        assert mean(device, operands, weights, dtype, accumulate, dtype, 3).tolist() == two
        total = folded(device, operands, weights, dtype, accumulate, 3)
        assert finished(device, total, dtype).tolist() == two
    assert mean(device, operands, [1e30, 1.0], dtype, accumulate, dtype, 3).tolist() == [1.0] * 3
    total = folded(device, operands, [0.0, 0.0], dtype, accumulate, 3)
    device.fold(total, operands, [1e-60, 1e-60], dtype)
    assert finished(device, total, dtype).tolist() == two


@pytest.mark.parametrize("accumulate", ACCUMULATORS)
def test_weights_are_finite_and_not_negative(device: Backend, accumulate: str) -> None:
    operand, out = np.ones(3, np.float32), np.empty(3, np.float32)
    for weight in (-1.0, np.nan, np.inf, *([2.0**-65, 2.0**65, 1e-30] if accumulate == "exact" else [])):
        with pytest.raises(WeightRange, match=r"weight 1 is"):
            device.mean([operand, operand], [1.0, weight], out, "float32", accumulate)
    for weights in ([0.0], []):
        with pytest.raises(WeightRange, match="sum of the weights is 0"):
            device.mean([operand] * len(weights), weights, out, "float32", accumulate)


@pytest.mark.parametrize("accumulate", ACCUMULATORS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", FLOATS)
def test_what_is_not_finite_is_refused_by_part_and_element(
    device: Backend, dtype: str, bad: float, accumulate: str
) -> None:
    for weight in (1.0, 0.0):
        for element in (0, 70, 8192, 9001):
            operands = [np.ones(9002, FLOATS[dtype]) for _ in range(6)]
            operands[4][element] = operands[5][0] = bad
            held: list[Any] = [stored(operand) for operand in operands]
            total = device.total(9002, accumulate)
            weights = [1.0] * 4 + [weight, 1.0]
            with pytest.raises(NotFinite) as caught:
                device.fold(total, held, weights, dtype)
            assert (caught.value.operand, caught.value.element) == (4, element)
            assert np.array_equal([caught.value.value], [bad], equal_nan=True)
            with pytest.raises(NotFinite, match=f"operand 4: element {element} is"):
                device.mean(held, weights, np.empty(9002, held[0].dtype), dtype, accumulate)
            with pytest.raises(SpoiledTotal, match="begin with a new one"):
                device.fold(total, held, weights, dtype)
            with pytest.raises(SpoiledTotal):
                device.finish(total, np.empty(9002, held[0].dtype), dtype)
            with pytest.raises(SpoiledTotal):
                device.merge(device.total(9002, accumulate), total)


def test_what_is_not_finite_is_found_in_the_tensor_that_has_it(device: Backend) -> None:
    good: list[Any] = [np.ones(300, np.float32), np.ones(10, np.float32)]
    bad: list[Any] = [np.ones(300, np.float32), np.array([1, 1, np.nan] + [1] * 7, np.float32)]
    for accumulate in ACCUMULATORS:
        with pytest.raises(NotFinite, match="operand 1: element 514 is nan"):
            device.fold(device.total(1024, accumulate), [good, bad], [1.0, 1.0], "float32")


def test_a_term_that_overflows_is_refused_where_it_is(device: Backend) -> None:
    operand = np.ones(200)
    operand[137] = -1e300
    total = device.total(200, "exact")
    with pytest.raises(Overflow, match="times its weight") as caught:
        device.fold(total, [np.ones(200), operand], [1.0, 2.0**64], "float64")
    assert (caught.value.operand, caught.value.element) == (1, 137)
    with pytest.raises(SpoiledTotal):
        device.fold(total, [operand], [1.0], "float64")


@pytest.mark.parametrize(("accumulate", "value"), [("float32", 3e38), ("float64", 1.5e308)])
def test_a_sum_that_overflows_is_refused(device: Backend, accumulate: str, value: float) -> None:
    operands = [np.array([value / 8, value], accumulate)] * 3
    with pytest.raises(Overflow, match=f"the {accumulate} total") as caught:
        device.fold(device.total(2, accumulate), operands, [1.0] * 3, accumulate)
    assert caught.value.element == 1
    assert mean(device, operands, [1.0] * 3, accumulate, "exact", accumulate, 2).tolist() == operands[0].tolist()


@pytest.mark.parametrize(
    ("result", "fits", "too_large", "accumulators"),
    [
        ("float16", 65519.0, 65520.0, ("exact", "float64", "float32")),
        ("int8", 127.4, 127.6, ("exact", "float64")),
        ("uint8", -0.5, -0.6, ("exact", "float32")),
        ("int16", -32768.4, -32768.6, ("float32",)),
        ("bfloat16", 3.38e38, 3.397e38, ("exact", "float32")),
    ],
)
def test_a_result_that_its_dtype_cannot_hold_is_refused(
    device: Backend, result: str, fits: float, too_large: float, accumulators: tuple[str, ...]
) -> None:
    good, bad = np.array([0.0, fits], np.float32), np.array([0.0, too_large], np.float32)
    for accumulate in accumulators:
        mean(device, [good], [1.0], "float32", accumulate, result, 2)
        total = folded(device, [bad], [1.0], "float32", accumulate, 2)
        with pytest.raises(Overflow, match=f"element 1 .*{result}") as caught:
            finished(device, total, result)
        assert caught.value.element == 1
        with pytest.raises(Overflow, match=f"element 1 .*{result}") as caught:
            mean(device, [bad], [1.0], "float32", accumulate, result, 2)
        assert caught.value.element == 1


@pytest.mark.parametrize("accumulate", [accumulate for dtype, accumulate in PAIRS if dtype == "int8"])
def test_integers_round_half_to_even(device: Backend, accumulate: str) -> None:
    operands = [np.array([0, 1, 2, -1, -3], np.int8), np.array([1, 2, 3, 0, -2], np.int8)]
    assert mean(device, operands, [1.0, 1.0], "int8", accumulate, "int8", 5).tolist() == [0, 2, 2, 0, -2]


@pytest.mark.parametrize(("dtype", "accumulate"), BASES)
def test_a_base_is_added_in_one_pass_as_in_two(device: Backend, dtype: str, accumulate: str) -> None:
    rng = np.random.default_rng(4)
    operands = [draw(rng, dtype, 300).operand for _ in range(3)]
    result = "float32" if dtype in QUANTIZED else dtype
    base = np.arange(300).astype(DTYPES[result]).view(storage_dtype(result))
    two, one = np.empty_like(base), np.empty_like(base)
    weights = [1.0, 2.0, 0.1]
    if dtype in ("int16", "int32"):
        operands = [operand // 4 for operand in operands]
    device.finish(folded(device, operands, weights, dtype, accumulate, 300), two, result, base)
    device.mean(operands, weights, one, dtype, accumulate, base=base)
    assert one.tobytes() == two.tobytes()


def test_parts_that_do_not_fit_the_result_are_refused(device: Backend) -> None:
    with pytest.raises(BufferMismatch, match="operand 0: expected a contiguous buffer of 3 float32"):
        device.mean([np.ones(4, np.float32)], [1.0], np.empty(3, np.float32), "float32")
    with pytest.raises(BufferMismatch, match="base: expected"):
        device.mean([np.ones(3, np.float32)], [1.0], np.empty(3, np.float32), "float32", base=np.empty(2, np.float32))
    with pytest.raises(KernelError):
        device.mean([np.ones(3, ml_dtypes.bfloat16)], [1.0], np.empty(3, np.uint16), "bfloat16")
