"""`SquaredDistances`: every float dtype against the oracle, and what a sum must not depend on."""

import math
from fractions import Fraction
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from flcore_kernels import BufferMismatch, Overflow, SquaredDistances, TooManyTerms, UnknownDType, storage_dtype
from flcore_kernels.digit_sums import DigitSums
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.kernels.cases import at_odd_address
from tests.reference import DTYPES, FLOATS

Array = npt.NDArray[Any]
SIZES = (1, 255, 256, 257, 4096, 70_001)


def drawn(count: int, size: int, dtype: str, seed: int = 0, scale: float = 1.0) -> list[Array]:
    rng = np.random.default_rng(seed)
    values = [(rng.standard_normal(size) * scale).astype(DTYPES[dtype]) for _ in range(count)]
    return [value.view(storage_dtype(dtype)) for value in values]


def found(operands: list[Array], dtype: str, base: Array | None = None, **options: Any) -> npt.NDArray[np.float64]:
    distances = SquaredDistances(len(operands), **options)
    distances.add(operands, dtype, base)
    return distances.matrix()


def wanted(operands: list[Array], dtype: str, base: Array | None = None) -> npt.NDArray[np.float64]:
    """The same in float64, where the differences of float32 are exact."""
    last = np.zeros_like(operands[0]) if base is None else base
    points = [each.view(DTYPES[dtype]).astype(np.float64) for each in [*operands, last]]
    return np.array([[math.fsum((one - other) ** 2) for other in points] for one in points])


def are_close(matrix: npt.NDArray[np.float64], oracle: npt.NDArray[np.float64]) -> bool:
    return bool((np.abs(matrix - oracle) <= 1.1e-6 * oracle).all())


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("size", SIZES)
def test_distances_are_those_of_the_oracle(dtype: str, size: int) -> None:
    for count in (1, 2, 3, 4, 5, 9):
        operands = drawn(count, size, dtype, count)
        assert are_close(found(operands, dtype), wanted(operands, dtype))
        base = drawn(1, size, dtype, 99)[0]
        assert are_close(found(operands, dtype, base), wanted(operands, dtype, base))


def test_without_pairs_the_distances_to_the_base_are_the_same_bits() -> None:
    operands, base = drawn(11, 5000, "float32"), drawn(1, 5000, "float32", 7)[0]
    everything, alone = found(operands, "float32", base), found(operands, "float32", base, pairs=False)
    assert (alone[-1] == everything[-1]).all() and (alone[:, -1] == everything[-1]).all()
    assert np.isnan(alone[0, 1]) and alone[0, 0] == 0


@pytest.mark.parametrize("scale", [1e-30, 1e-18, 1e-3, 1e18, 1e30])
def test_tiny_and_huge_values_neither_vanish_nor_overflow(scale: float) -> None:
    operands = drawn(6, 3000, "float32", scale=scale)
    assert are_close(found(operands, "float32"), wanted(operands, "float32"))


def test_models_that_are_nearly_the_same_have_the_distance_of_their_difference() -> None:
    (first,) = drawn(1, 10_000, "float32", scale=1000.0)
    second = np.nextafter(first, np.float32(np.inf))
    third = first.copy()
    third[777] = np.nextafter(third[777], np.float32(-np.inf))
    operands: list[Array] = [first, second, third]
    matrix = found(operands, "float32")
    assert are_close(matrix, wanted(operands, "float32")) and matrix[0, 2] > 0


def test_equal_operands_have_no_distance() -> None:
    (first,) = drawn(1, 3000, "float32")
    assert (found([first, first.copy(), first.copy()], "float32")[:3, :3] == 0).all()


def test_large_and_tiny_elements_of_one_operand_each_count() -> None:
    first = np.zeros(1024, np.float32)
    second = first.copy()
    second[5], second[300], second[301] = 1e-25, 1e30, 1e-25
    third = second.copy()
    third[5] = 0.0
    operands: list[Array] = [first, second, third]
    assert are_close(found(operands, "float32"), wanted(operands, "float32"))


@settings(deadline=None, max_examples=40)
@given(st.data())
def test_a_sum_depends_on_neither_ranges_nor_threads_nor_the_order_of_the_operands(data: st.DataObject) -> None:
    count, size = data.draw(st.integers(2, 9)), data.draw(st.integers(1, 5000))
    rng = np.random.default_rng(data.draw(st.integers(0, 1 << 30)))
    exponents = rng.integers(-40, 40, (count, size))
    operands: list[Array] = list(np.ldexp(rng.standard_normal((count, size)), exponents).astype(np.float32))
    whole = found(operands, "float32", threads=1)
    order = data.draw(st.permutations(range(count)))
    permuted = found([operands[k] for k in order], "float32")
    places = np.array([*order, count])
    assert (permuted == whole[np.ix_(places, places)]).all()
    cuts = sorted({0, size, *(256 * cut for cut in data.draw(st.lists(st.integers(0, size // 256))))})
    parts = [SquaredDistances(count) for _ in range(2)]
    for number, (first, stop) in enumerate(pairwise(cuts)):
        parts[number % 2].add([operand[first:stop] for operand in operands], "float32")
    parts[1].merge(parts[0])
    assert (parts[1].matrix() == whole).all()


def test_many_threads_give_the_bits_of_one() -> None:
    operands = drawn(5, 3_000_000, "float32")
    assert (found(operands, "float32", threads=3) == found(operands, "float32", threads=1)).all()


def test_operands_are_read_in_place_at_any_address() -> None:
    operands = drawn(5, 3000, "float32")
    moved = [at_odd_address(operand) for operand in operands]
    assert (found(moved, "float32") == found(operands, "float32")).all()


def test_nothing_is_added_of_no_elements() -> None:
    assert (found([np.zeros(0, np.float32)] * 3, "float32") == 0).all()


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_an_element_that_is_not_finite_is_refused_and_the_sums_stay(bad: float) -> None:
    operands = drawn(5, 3000, "float32")
    distances = SquaredDistances(5)
    distances.add(operands, "float32")
    before = distances.matrix()
    broken = [operand.copy() for operand in operands]
    broken[3][1000] = bad
    with pytest.raises(Overflow, match="elements 768 and on: a squared distance is not finite") as caught:
        distances.add(broken, "float32")
    assert caught.value.element == 768 and (distances.matrix() == before).all()


def test_squares_beyond_float64_are_refused() -> None:
    with pytest.raises(Overflow, match="is not finite"):
        found([np.array([1e200]), np.array([-1e200])], "float64")


def test_wrong_calls_are_refused() -> None:
    ones = np.ones(4, np.float32)
    calls: list[tuple[list[Array], str, str]] = [
        ([ones], "float32", "expected 2 operands, got 1"),
        ([ones, np.ones(3, np.float32)], "float32", "operand 1: expected a contiguous buffer of 4 float32"),
        ([ones, np.ones(4)], "float32", "operand 1: expected a contiguous buffer of 4 float32"),
        ([np.ones(4, np.int8)] * 2, "int8", "expected operands of a float dtype, got int8"),
    ]
    for operands, dtype, expected in calls:
        with pytest.raises(BufferMismatch, match=expected):
            SquaredDistances(2).add(operands, dtype)
    with pytest.raises(BufferMismatch, match="base: expected"):
        SquaredDistances(1).add([ones], "float32", np.ones(3, np.float32))
    with pytest.raises(UnknownDType):
        SquaredDistances(1).add([ones], "float8")
    with pytest.raises(TooManyTerms, match="expected between 1 and"):
        SquaredDistances(0)
    with pytest.raises(BufferMismatch, match="expected sums of the same pairs of 2 operands, got others of 3"):
        SquaredDistances(2).merge(SquaredDistances(3))


@given(st.lists(st.floats(0, 1e300), max_size=20), st.randoms())
def test_digits_add_up_to_the_sum_in_any_order(terms: list[float], random: Any) -> None:
    def total(ordered: list[float]) -> float:
        sums = DigitSums(1, 1)
        for term in ordered:
            one = DigitSums(1, 1)
            place = max(-30, (math.frexp(term)[1] + 31) // 32 - 1) if term else -30
            left = Fraction(term) / Fraction(2) ** (32 * place)
            for digit in range(3):
                one.digits[0, digit, 0] = int(left)
                left = (left - int(left)) * 2**32
            one.places[0, 0] = place
            sums.add(one.places, one.digits)
        return sums.values(np.ones((1, 1), np.bool_))[0]

    shuffled = list(terms)
    random.shuffle(shuffled)
    assert total(shuffled) == total(terms) == pytest.approx(math.fsum(terms), rel=1e-15, abs=1e-300)
