"""The law of exact sums: one result, whatever the order, the calls, the chunks, the threads and the merges."""

import io
from collections.abc import Iterator
from fractions import Fraction
from itertools import pairwise, product
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pytest
from flcore_kernels import Backend, NotFinite, Overflow, Quantized, TooManyTerms, backend
from flcore_kernels.cpu import backend as cpu_backend
from flcore_kernels.cpu import exact_fallback as cpu_exact_fallback
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.kernels.cases import QUANTIZED, Case, again, case, draw, finished, folded, mean, opened, state_of
from tests.kernels.law import require_state
from tests.reference import DTYPES, FLOATS, PRECISION, exact_mean, ulp

CPU = backend("cpu", threads=1)
SIZE = 600
QUIET = settings(deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
RANGES = {"float64": (-300, 280), "float32": (-38, 38), "float16": (-7, 4), "bfloat16": (-38, 38)}


class Clients(NamedTuple):
    """Some operands of one dtype, and their weights."""

    dtype: str
    cases: list[Case]
    weights: list[float]

    def operands(self, order: list[int] | None = None) -> list[Any]:
        return [self.cases[k].operand for k in (range(len(self.cases)) if order is None else order)]


@st.composite
def clients(draw_: st.DrawFn) -> Clients:
    """A few clients: values of all magnitudes side by side, weights 0 or within 2^-64 to 2^64."""
    dtype = draw_(st.sampled_from([*FLOATS, "int16", "int64", "int8[32]", "int8[256]"]))
    rng = np.random.default_rng(draw_(st.integers(0, 2**32)))
    count = draw_(st.integers(1, 9))
    cases = []
    for _ in range(count):
        if dtype not in FLOATS:
            cases.append(draw(rng, dtype, SIZE))
            continue
        low, high = RANGES[dtype]
        middle = rng.uniform(low, high) if rng.random() < 0.5 else 0.0
        exponents = rng.uniform(low, high, SIZE) if rng.random() < 0.3 else np.full(SIZE, middle)
        with np.errstate(under="ignore"):
            values = (rng.uniform(-3, 3, SIZE) * 10.0**exponents).astype(DTYPES[dtype])
        values[rng.random(SIZE) < 0.1] = 0
        cases.append(case(values))
    wide = draw_(st.booleans())
    exponents = rng.uniform(-64, 63, count) if wide else rng.uniform(-3, 3, count)
    weights = np.where(rng.random(count) < 0.1, 0.0, rng.uniform(1, 2, count) * 2.0**exponents)
    weights[0] = 1.0 if not weights.any() else weights[0]
    return Clients(dtype, cases, weights.tolist())


def test_levels_may_change_from_block_to_block_and_lie_anywhere_in_their_bin(device: Backend) -> None:
    """A tile's levels are guessed; blocks below the guess, far below, above, empty and at its edges are found out."""
    rng = np.random.default_rng(5)
    for _ in range(12):
        size = 11 * 64 + 5
        exponents = rng.choice([-1000, -97, -49, -48, -47, -3, -2, -1, 0, 1, 40, 45, 46, 47, 48, 49, 90], 12)
        scale = np.repeat(2.0**exponents, 64)[:size] * np.repeat(rng.random(12) < 0.8, 64)[:size]
        values = [rng.choice([1.0, -1.0, 1.5, -0.75, 2.0 - 2.0**-52], size) * scale for _ in range(6)]
        require_state(device, values, [1.0, 1.0, 0.5, 2.0, 1.0, 3.0])


def result_of(found: Clients) -> str:
    return "float32" if found.dtype in QUANTIZED else found.dtype


def tree(device: Backend, rng: np.random.Generator, found: Clients, order: list[int]) -> Any:
    """Fold some groups of clients into totals of their own, and merge these in any order, saved now and then."""
    cuts = sorted({0, len(order), *rng.integers(0, len(order) + 1, 3).tolist()})
    totals = [
        folded(device, found.operands(order[a:b]), [found.weights[k] for k in order[a:b]], found.dtype, "exact", SIZE)
        for a, b in pairwise(cuts)
    ]
    totals.append(device.total(SIZE, "exact"))
    while len(totals) > 1:
        one = totals.pop(int(rng.integers(len(totals))))
        other = totals.pop(int(rng.integers(len(totals))))
        device.merge(one, again(device, other) if rng.random() < 0.5 else other)
        totals.append(one)
    return totals[0]


@settings(QUIET, max_examples=150)
@given(found=clients(), seed=st.integers(0, 2**32))
def test_any_order_any_calls_any_merges_saved_and_restored_in_between_give_the_same_state(
    device: Backend, found: Clients, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    whole = state_of(device, folded(device, found.operands(), found.weights, found.dtype, "exact", SIZE))
    order = rng.permutation(len(found.cases)).tolist()
    total = device.total(SIZE, "exact")
    for k in order:
        device.fold(total, found.operands([k]), [found.weights[k]], found.dtype)
        total = again(device, total) if rng.random() < 0.3 else total
    assert state_of(device, total) == whole
    assert state_of(device, tree(device, rng, found, order)) == whole


@settings(QUIET, max_examples=100)
@given(found=clients(), result=st.sampled_from([None, *FLOATS]))
def test_one_shot_two_steps_and_the_oracle_agree_to_the_bit(
    device: Backend, found: Clients, result: str | None
) -> None:
    result = result if result and found.dtype in FLOATS else result_of(found)
    values = [c.values[:128] for c in found.cases]
    expected = exact_mean(values, found.weights, result)
    operands: list[Any] = found.operands()
    fits = np.isfinite(expected) & (np.abs(expected) <= float(largest_of(result)))
    if not fits.all():
        with pytest.raises(Overflow):
            mean(device, operands, found.weights, found.dtype, "exact", result, SIZE)
        return
    total = folded(device, operands, found.weights, found.dtype, "exact", SIZE)
    try:
        two = finished(device, total, result)
    except Overflow:  # beyond the first 128 elements
        return
    assert opened(two, result)[:128].tobytes() == expected.tobytes()
    one = mean(device, operands, found.weights, found.dtype, "exact", result, SIZE)
    assert one.tobytes() == two.tobytes()


def largest_of(result: str) -> Fraction:
    if result not in PRECISION:
        return Fraction(2**53)
    precision, lowest = PRECISION[result]
    return (2 - Fraction(2) ** (1 - precision)) * Fraction(2) ** (2 - lowest - precision)


@settings(QUIET, max_examples=100)
@given(found=clients())
def test_the_error_is_within_the_bound_that_the_design_states(device: Backend, found: Clients) -> None:
    """Half an ulp of the result and (rho + 1/32) · 2^-48 of the block's largest value."""
    result = result_of(found)
    weights = [Fraction(weight) for weight in found.weights]
    total = sum(weights, Fraction(0))
    rho = len(weights) * max(weights) / total
    out = opened(mean(device, found.operands(), found.weights, found.dtype, "exact", result, SIZE), result)
    for start in (0, 512, 576):
        block = [c.values[start : start + 64] for c in found.cases]
        largest = Fraction(max(float(np.abs(values).max()) for values in block))
        for i in range(block[0].size):
            products = [w * Fraction(float(v[i])) for w, v in zip(weights, block, strict=True)]
            truth = sum(products, Fraction(0)) / total
            bound = ulp(truth, result) / 2 + (rho + Fraction(1, 32)) / 2**48 * largest
            # A product below the range of float64 is rounded to its smallest step.
            bound += rho * Fraction(1, 2**1074) / max(weights)
            assert abs(Fraction(float(out[start + i])) - truth) <= bound


@pytest.mark.parametrize("dtype", [*FLOATS, "int8[64]", "int32"])
def test_chunks_and_threads_change_nothing(device: Backend, dtype: str) -> None:
    size, rng = 100_003, np.random.default_rng(7)
    cases = [draw(rng, dtype, size) for _ in range(6)]
    weights = [0.1, 3.0, 2.0**-50, 7.0, 0.3, 1e6]
    result = "float32" if dtype in QUANTIZED else dtype
    operands: list[Any] = [c.operand for c in cases]
    whole = folded(device, operands, weights, dtype, "exact", size)
    expected = finished(device, whole, result)
    for threads in (1, 2, 3):
        other = backend("cpu", threads=threads)
        assert state_of(other, folded(other, operands, weights, dtype, "exact", size)) == state_of(device, whole)
        assert mean(other, operands, weights, dtype, "exact", result, size).tobytes() == expected.tobytes()
        there = other.restore(io.BytesIO(state_of(device, whole)))
        assert finished(other, there, result).tobytes() == expected.tobytes()
    if dtype in QUANTIZED:
        return
    cuts = [0, 256, 512, 20_480, 65_536, 99_840, size]
    pieces = [[operand[a:b] for a, b in pairwise(cuts)] for operand in operands]
    assert state_of(device, folded(device, pieces, weights, dtype, "exact", size)) == state_of(device, whole)
    for index, (a, b) in enumerate(pairwise(cuts)):
        chunk = folded(device, [piece[index] for piece in pieces], weights, dtype, "exact", b - a)
        assert finished(device, chunk, result).tobytes() == expected[a:b].tobytes()


def around_bin_edges() -> Iterator[npt.NDArray[np.float64]]:
    for edge in range(-1056, 1009, 48):
        with np.errstate(under="ignore"):
            scales = [2.0**e for e in range(edge - 2, edge + 3) if -1074 <= e <= 1022]
        yield np.array(
            [
                factor * scale
                for scale in scales
                for factor in (1.0, 1.5, 1 + 2.0**-52, 2 - 2.0**-52)
                if np.isfinite(factor * scale)
            ]
        )


def test_all_pairs_around_every_bin_edge_in_both_orders(device: Backend) -> None:
    for values in around_bin_edges():
        one, two = (np.array(side) for side in zip(*product(values, values), strict=True))
        # A block of its own for each pair: its first element.
        spread = np.zeros((2, 64 * one.size))
        spread[0, ::64], spread[1, ::64] = one, two
        size = spread.shape[1]
        total, other = (folded(device, [spread[first]], [1.0], "float64", "exact", size) for first in (0, 1))
        device.fold(total, [spread[1]], [1.0], "float64")
        device.fold(other, [spread[0]], [1.0], "float64")
        at_once = folded(device, list(spread), [1.0, 1.0], "float64", "exact", size)
        assert state_of(device, total) == state_of(device, other) == state_of(device, at_once)
        found = finished(device, total, "float64")[::64]
        chosen = range(0, one.size, 7)
        expected = [exact_mean([one[i : i + 1], two[i : i + 1]], [1.0, 1.0], "float64")[0] for i in chosen]
        assert found[chosen].tolist() == expected


@pytest.mark.parametrize("exponent", [-1060, -900, -870, -864, -770, -40, 0, 700, 760, 860, 910, 970])
def test_all_of_the_state_is_the_oracles_at_every_magnitude(device: Backend, exponent: int) -> None:
    rng = np.random.default_rng(12)
    with np.errstate(under="ignore"):
        values = [np.ldexp(rng.uniform(-1, 1, 70), exponent + int(e)) for e in (0, 20, -30, 48, -60, 3)]
    require_state(device, values, [1.0, 0.1, 3.0, 2.0**-9, 7.7, 1.0])


def test_no_more_than_65_535_terms_are_taken_and_none_of_them_overflows(device: Backend) -> None:
    total = folded(device, [np.full(2, 2.0**47), np.full(2, -(2.0**47))][:1], [1.0], "float64", "exact", 2)
    for _ in range(15):
        device.merge(total, again(device, total))
    before = state_of(device, total)
    with pytest.raises(TooManyTerms, match="65535"):
        device.merge(total, again(device, total))
    with pytest.raises(TooManyTerms):
        device.fold(total, [np.ones(2)] * 32_768, [1.0] * 32_768, "float64")
    with pytest.raises(TooManyTerms):
        device.mean([np.ones(2)] * 65_536, [1.0] * 65_536, np.empty(2), "float64")
    assert state_of(device, total) == before
    device.fold(total, [np.full(2, 2.0**47)] * 32_767, [1.0] * 32_767, "float64")
    assert total.terms == 65_535
    assert finished(device, total, "float64").tolist() == [2.0**47] * 2
    with pytest.raises(TooManyTerms):
        device.fold(total, [np.zeros(2)], [0.0], "float64")


class Spy:
    """Counts the blocks that go to long division."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.blocks = 0
        write_unresolved = cpu_exact_fallback.write_unresolved

        def counted(total: Any, blocks: Any, *rest: Any) -> int:
            self.blocks += len(blocks)
            return write_unresolved(total, blocks, *rest)

        monkeypatch.setattr(cpu_backend, "write_unresolved", counted)


def ties(dtype: str, count: int, size: int) -> list[Case]:
    """Values whose mean, of equal weights, lies in the middle of two neighbours, or beside it."""
    rng = np.random.default_rng(size)
    if dtype not in FLOATS:
        return [case(rng.integers(0, 100, size).astype(dtype)) for _ in range(count)]
    base = rng.uniform(1, 2, size).astype(DTYPES[dtype])
    step = np.float64(2.0 ** (1 - PRECISION[dtype][0]))
    return [
        case((base.astype(np.float64) + step * rng.integers(0, 3, size)).clip(1, 1.99).astype(DTYPES[dtype]))
        for _ in range(count)
    ]


@pytest.mark.parametrize("count", [2, 4])
@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16", "float16", "int8", "int64"])
def test_ties_go_to_even(device: Backend, dtype: str, count: int) -> None:
    cases = ties(dtype, count, 192)
    for weight in (1.0, 3.0, 0.1, 2.0**-64):
        weights = [weight] * count
        expected = exact_mean([c.values for c in cases], weights, dtype)
        found = mean(device, [c.operand for c in cases], weights, dtype, "exact", dtype, 192)
        assert opened(found, dtype).tobytes() == expected.tobytes()
        total = folded(device, [c.operand for c in cases], weights, dtype, "exact", 192)
        assert finished(device, total, dtype).tobytes() == found.tobytes()


@pytest.mark.parametrize("result", [*FLOATS, "int8"])
@pytest.mark.parametrize(
    "weights",
    [[0.1] * 3, [0.1, 0.7, 1e-3], [2.0**-60, 1.0, 2.0**60], [2.0**53, 1.0, 2.0**-40], [1 / 3, 1e10, 3e-10]],
    ids=str,
)
def test_sums_of_weights_beyond_53_bits_divide_correctly(device: Backend, weights: list[float], result: str) -> None:
    rng = np.random.default_rng(13)
    for dtype in ("float64", "float32"):
        cases = [case((rng.uniform(-9, 9, 320) * 2.0 ** rng.integers(-3, 3, 320)).astype(dtype)) for _ in weights]
        cases[0].operand[64:128] = cases[1].operand[64:128] = cases[2].operand[64:128] = rng.integers(-90, 90, 64) / 2
        cases = [case(c.operand) for c in cases]
        expected = exact_mean([c.values for c in cases], weights, result)
        found = mean(device, [c.operand for c in cases], weights, dtype, "exact", result, 320)
        assert opened(found, result).tobytes() == expected.tobytes()


@pytest.mark.parametrize("weights", [[0.1] * 3, [1.0, 1.0], [2.0**-60, 2.0**60]], ids=str)
def test_long_division_is_reached_and_right_in_one_pass_and_in_two(
    weights: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    dtype, spy = "float64", Spy(monkeypatch)
    rng = np.random.default_rng(14)
    sizes = [1, 300, 65]
    tensors = [[rng.uniform(-1, 1, size) * 2.0**-800 for size in sizes] for _ in weights]
    outs = [np.empty(size) for size in sizes]
    backend("cpu", threads=2).mean(tensors, weights, outs, dtype)
    assert spy.blocks == 1 + 5 + 2
    total = folded(CPU, tensors, weights, dtype, "exact", 256 + 512 + 65)
    two = [np.empty(size) for size in sizes]
    CPU.finish(total, two, dtype)
    assert spy.blocks == 2 * (1 + 5 + 2)
    for index in range(3):
        expected = exact_mean([tensor[index] for tensor in tensors], weights, dtype)
        assert outs[index].tobytes() == two[index].tobytes() == expected.tobytes()


def test_a_tie_with_a_sum_of_weights_beyond_53_bits_goes_to_long_division(monkeypatch: pytest.MonkeyPatch) -> None:
    spy = Spy(monkeypatch)
    weights = [2.0**53, 1.0, 1.0, 1.0]
    # The middle of two bfloat16 neighbours, whose last bits are even below one and odd below the other.
    for middle, expected in ((257.0, 256.0), (259.0, 260.0), (-257.0, -256.0)):
        before = spy.blocks
        operands = [np.full(64, middle, np.float32)] * 4
        found = mean(CPU, operands, weights, "float32", "exact", "bfloat16", 64)
        assert opened(found, "bfloat16").tolist() == [expected] * 64
        assert spy.blocks == before + 1


def test_a_quotient_just_above_the_middle_of_two_neighbours_is_looked_at_closely(device: Backend) -> None:
    """A factor that is rounded up takes the middle of two float32 beyond it."""
    found = mean(device, [np.array([15_524_160.5])], [75.0], "float64", "exact", "float32", 1)
    assert found.tolist() == [15_524_160.0]


def test_long_division_reads_the_scales_of_its_block(device: Backend) -> None:
    operands: list[Any] = [Quantized(np.full(256, k, np.int8), np.array([2.0**-130], np.float32)) for k in range(1, 11)]
    found = mean(device, operands, [0.1] * 10, "int8[256]", "exact", "float32", 256)
    assert set(found.tolist()) == {5.5 * 2.0**-130}


def test_most_results_show_without_long_division(monkeypatch: pytest.MonkeyPatch) -> None:
    spy = Spy(monkeypatch)
    rng = np.random.default_rng(15)
    for dtype in ("float64", "float32", "bfloat16"):
        cases = [*ties(dtype, 4, 6400), draw(rng, dtype, 6400)]
        mean(CPU, [c.operand for c in cases], [1.0, 1.0, 1.0, 1.0, 0.1], dtype, "exact", dtype, 6400)
    assert spy.blocks == 0


def test_what_is_not_finite_never_becomes_a_digit() -> None:
    total = CPU.total(64, "exact")
    with pytest.raises(NotFinite):
        CPU.fold(total, [np.full(64, np.nan)], [0.0], "float64")
    assert not total.values.any()
