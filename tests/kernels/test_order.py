"""`median` and `trimmed_mean`: every dtype against the oracle, for few and many clients, with and without weights."""

from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from flcore_kernels import (
    BufferMismatch,
    Quantized,
    TooManyTerms,
    UnknownDType,
    WeightRange,
    mean_around_median,
    median,
    storage_dtype,
)
from flcore_kernels import trimmed_mean as trimmed
from flcore_kernels.order import integer_weights
from flcore_kernels.order_program import MERGE, MIDDLE, SPLIT, Program, comparators, median_program, sort_program
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.kernels.cases import at_odd_address, draw, opened
from tests.reference import FLOATS, ORDERED, nearest, rounded, sorted_mean, ulp, weighted_median

Array = npt.NDArray[Any]
COUNTS = [*range(1, 71), 128, 1000]


def found(statistic: Any, operands: Sequence[Array], dtype: str, **options: Any) -> Array:
    out = np.empty(operands[0].size, storage_dtype(options.get("result", dtype)))
    statistic(operands, out, dtype, **options)
    return out


def floats(count: int, size: int, seed: int = 0) -> list[npt.NDArray[np.float32]]:
    """Values of which many are equal, zeros of both signs among them."""
    rng = np.random.default_rng(seed + count)
    return [
        (rng.integers(-9, 9, size) * np.float32(0.7) * rng.choice([1, -1])).astype(np.float32) for _ in range(count)
    ]


def run_steps(program: Program, column: list[int]) -> list[int]:
    """Do the steps of a program to one column, as the kernel does to vectors of columns."""
    rows = [-1] * program.first + column
    rows += [10**6] * (program.rows - len(rows))
    for kind, row, other in program.steps.tolist():
        if kind == MERGE:
            rows[row : row + 16] = sorted(rows[row : row + 16])
        elif kind in (SPLIT, MIDDLE):
            pairs = [sorted((rows[row + k], rows[other + 15 - k])) for k in range(16)]
            if kind == MIDDLE:
                rows[row + 15], rows[other] = max(low for low, _ in pairs), min(high for _, high in pairs)
            else:
                for k, (low, high) in enumerate(pairs):
                    rows[row + k], rows[other + 15 - k] = low, high
        else:
            rows[row : row + kind] = sorted(rows[row : row + kind])
    return rows


@pytest.mark.parametrize("rows", range(1, 17))
def test_a_network_sorts_all_zeros_and_ones_and_so_everything(rows: int) -> None:
    bits = np.array([[(number >> row) & 1 for number in range(1 << rows)] for row in range(rows)], np.uint8)
    for one, other in comparators(rows):
        bits[one], bits[other] = np.minimum(bits[one], bits[other]), np.maximum(bits[one], bits[other])
    assert (np.diff(bits.astype(np.int8), axis=0) >= 0).all()


@pytest.mark.parametrize("clients", COUNTS)
def test_steps_sort_any_number_of_rows_and_find_their_middle(clients: int) -> None:
    rng = np.random.default_rng(clients)
    column = rng.integers(0, 1000, clients).tolist()
    assert run_steps(sort_program(clients), column)[:clients] == sorted(column)
    program, low, high = median_program(clients)
    rows = run_steps(program, column)
    assert [rows[low], rows[high]] == [sorted(column)[(clients - 1) // 2], sorted(column)[clients // 2]]


@pytest.mark.parametrize("clients", COUNTS)
def test_medians_and_trimmed_means_of_any_number_of_clients_agree_with_numpy(clients: int) -> None:
    operands = floats(clients, 100)
    ordered = np.sort(np.stack(operands).astype(np.float64), axis=0)
    assert np.array_equal(found(median, operands, "float32"), np.median(ordered, axis=0).astype(np.float32))
    for trim in {0, clients // 4, (clients - 1) // 2}:
        wanted = ordered[trim : clients - trim].mean(axis=0)
        assert np.allclose(found(trimmed, operands, "float32", trim=trim), wanted, rtol=2**-23, atol=1e-12)


@pytest.mark.parametrize("dtype", ORDERED)
@pytest.mark.parametrize("weights", [None, [3, 1, 4, 1, 5, 9]])
def test_every_dtype_agrees_with_the_oracle(dtype: str, weights: list[int] | None) -> None:
    cases = [draw(np.random.default_rng(seed), dtype, 70) for seed in range(6)]
    operands, exact = [case.operand for case in cases], weights or [1] * 6
    middles = opened(found(median, operands, dtype, weights=weights), dtype)
    means = found(trimmed, operands, dtype, trim=2, weights=weights, result="float64")
    # The weight that is cut is a whole number of steps, of which the largest weight has 2^29 or more.
    bound = Fraction(1, 2**50 if weights is None else 2**27)
    for i in range(70):
        column = [Fraction(float(case.values[i])) for case in cases]
        wanted = weighted_median(column, exact)
        assert Fraction(float(middles[i])) == (rounded(wanted, dtype) if dtype != "bool" else round(wanted)), (
            i,
            column,
        )
        truth = sorted_mean(column, exact, Fraction(sum(exact) * 2, 6))
        assert abs(Fraction(float(means[i])) - truth) <= bound * max(map(abs, column)) + ulp(truth, "float64")


@settings(max_examples=60, deadline=None)
@given(
    weights=st.lists(st.integers(0, 5), min_size=1, max_size=40).filter(any),
    seed=st.integers(0, 999),
    exponent=st.integers(-40, 40),
)
def test_weights_count_as_repeated_clients_do_and_their_scale_and_order_do_not_matter(
    weights: list[int], seed: int, exponent: int
) -> None:
    operands = floats(len(weights), 20, seed)
    once = found(median, operands, "float32", weights=weights)
    repeated = [operand for operand, weight in zip(operands, weights, strict=True) for _ in range(weight)]
    assert np.array_equal(once, found(median, repeated, "float32"))
    order = np.random.default_rng(seed).permutation(len(weights)).tolist()
    moved, scaled = [operands[k] for k in order], [weights[k] * 2.0**exponent for k in order]
    assert found(median, moved, "float32", weights=scaled).tobytes() == once.tobytes()
    trim = (sum(map(bool, weights)) - 1) // 2
    mean = found(trimmed, operands, "float32", trim=trim, weights=weights, result="float64")
    assert found(trimmed, moved, "float32", trim=trim, weights=scaled, result="float64").tobytes() == mean.tobytes()
    for i in range(20):
        truth = sorted_mean(
            [operand[i] for operand in operands], weights, Fraction(sum(weights) * trim, sum(map(bool, weights)))
        )
        assert abs(Fraction(float(mean[i])) - truth) <= Fraction(10, 2**27), "as above, of values below 10"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
@pytest.mark.parametrize("weights", [None, [3.0, 1.0, 4.0, 1.0, 5.0]])
def test_neither_threads_nor_tiles_nor_addresses_change_a_bit(dtype: str, weights: list[float] | None) -> None:
    size = 9_001
    cases = [draw(np.random.default_rng(seed), dtype, size) for seed in range(5)]
    operands = [case.operand for case in cases]
    for statistic, options in ((median, {}), (trimmed, {"trim": 1})):
        whole = found(statistic, operands, dtype, weights=weights, threads=1, **options)
        assert found(statistic, operands, dtype, weights=weights, threads=3, **options).tobytes() == whole.tobytes()
        moved = [at_odd_address(operand) for operand in operands]
        assert found(statistic, moved, dtype, weights=weights, **options).tobytes() == whole.tobytes()
        for first, last in ((0, 1), (1, 700), (700, size)):
            part = found(statistic, [each[first:last].copy() for each in operands], dtype, weights=weights, **options)
            assert part.tobytes() == whole[first:last].tobytes()


@pytest.mark.parametrize("dtype", FLOATS)
def test_equal_operands_give_that_operand_and_ends_of_the_range_do_not_overflow(dtype: str) -> None:
    values = draw(np.random.default_rng(4), dtype, 99).operand
    for weights in (None, [1.0, 0.1, 7.0]):
        assert found(median, [values] * 3, dtype, weights=weights).tobytes() == values.tobytes()
        assert found(trimmed, [values] * 3, dtype, trim=1, weights=weights).tobytes() == values.tobytes()
    kind = FLOATS[dtype]
    ends = [
        np.array([sign * float(np.finfo(np.float64 if dtype == "float64" else np.float32).max)]) for sign in (1, -1)
    ]
    if dtype in ("float64", "float32"):
        high, low = (end.astype(kind) for end in ends)
        assert found(median, [high, high], dtype) == high and found(median, [high, low], dtype) == 0
        for weights in (None, [1.0, 2.0, 1.0, 2.0, 1.0]):
            mean = found(trimmed, [high, high, low, low, high], dtype, trim=1, weights=weights)
            assert low < mean < high
        assert found(trimmed, [high] * 64, dtype, trim=1) == high


def test_the_mean_of_two_middle_values_is_rounded_once() -> None:
    rng = np.random.default_rng(5)
    for dtype in ("float64", "float32"):
        one, other = (
            (rng.standard_normal(300) * 10.0 ** rng.integers(-30, 30, 300)).astype(FLOATS[dtype]) for _ in range(2)
        )
        for a, b, mean in zip(one, other, found(median, [one, other], dtype), strict=True):
            assert mean in nearest((Fraction(float(a)) + Fraction(float(b))) / 2, dtype)


def test_weights_become_integers_and_none_above_zero_is_lost() -> None:
    assert integer_weights([2.0**60, 1e-60, 0.0]) == [2**29, 1, 0]
    assert integer_weights([1 - 2.0**-53]) == [2**30]
    hostile = found(median, floats(3, 8), "float32", weights=[1e19, 1.0, 1.0])
    assert np.array_equal(hostile, floats(3, 8)[0])
    for weights in ([1.0, -1.0], [1.0, np.nan], [np.inf, 1.0], [0.0, 0.0]):
        with pytest.raises(WeightRange):
            median(floats(2, 8), np.empty(8, np.float32), "float32", weights=weights)


def test_what_does_not_fit_is_refused() -> None:
    good, out = np.ones(4, np.float32), np.empty(4, np.float32)
    frozen = np.empty(4, np.float32)
    frozen.flags.writeable = False
    for operands, dtype, target, words in (
        ([good, np.ones(3, np.float32)], "float32", out, "operand 1: expected a contiguous buffer of 4 float32"),
        ([np.ones(8, np.float32)[::2]], "float32", out, "got strided float32"),
        ([good], "float64", np.empty(4), "got contiguous float32"),
        ([good], "float32", frozen, "read-only"),
        ([Quantized(np.ones(4, np.int8), np.ones(1, np.float32))], "int8[256]", out, "decode them first"),
    ):
        with pytest.raises(BufferMismatch, match=words):
            median(operands, target, dtype)  # type: ignore[arg-type]
    with pytest.raises(BufferMismatch, match="one weight per operand"):
        median([good], out, "float32", weights=[])
    with pytest.raises(UnknownDType):
        median([good], out, "complex64")
    with pytest.raises(TooManyTerms, match="between 1 and 65535 operands, got 0"):
        median([], out, "float32")
    with pytest.raises(TooManyTerms, match="trim is 2: expected 5 operands or more that count, got 4"):
        trimmed([good] * 5, out, "float32", trim=2, weights=[1, 1, 1, 1, 0])
    median([np.empty(0, np.float32)], np.empty(0, np.float32), "float32")


@pytest.mark.parametrize("dtype", ORDERED)
def test_the_mean_around_the_median_is_that_of_the_nearest_values(dtype: str) -> None:
    for count, keep in ((1, 1), (2, 1), (5, 3), (6, 4), (7, 7), (20, 11), (70, 30)):
        rng = np.random.default_rng(count)
        operands: list[Array] = [draw(rng, dtype, 40).operand for _ in range(count)]
        values = np.stack([opened(operand, dtype) for operand in operands])
        out = found(mean_around_median, operands, dtype, keep=keep, result="float64")
        for element, column in zip(out, np.sort(values, axis=0).T, strict=True):
            middle = float(np.median(column))
            nearest_ones = sorted(sorted(column, key=lambda value: (abs(value - middle), value))[:keep])
            mean = sum(Fraction(float(value)) for value in nearest_ones) / keep
            assert element == pytest.approx(float(mean), rel=1e-12, abs=1e-300)
            assert nearest_ones[0] <= element <= nearest_ones[-1]


def test_a_mean_around_the_median_keeps_at_least_one_and_at_most_all() -> None:
    operands = floats(3, 5)
    for keep in (0, 4):
        with pytest.raises(
            TooManyTerms, match=f"keep is {keep}: expected a number between 1 and that of the operands, 3"
        ):
            found(mean_around_median, operands, "float32", keep=keep)


def test_a_changing_number_of_clients_compiles_nothing_new() -> None:
    from flcore_kernels.cpu import order

    found(median, floats(3, 5), "float32")
    before = order.median_kernel.cache_info().misses
    for clients in (2, 17, 40, 300):
        found(median, floats(clients, 5), "float32")
    assert order.median_kernel.cache_info().misses == before
