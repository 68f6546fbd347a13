"""Weights: what is one, and their exact sum."""

from fractions import Fraction

import numpy as np
import pytest
from flcore_kernels import ACCUMULATORS, EXACT_RANGE, WeightRange, backend, weights
from hypothesis import given
from hypothesis import strategies as st

POSITIVE = st.floats(min_value=0, allow_nan=False, allow_infinity=False)


@given(st.lists(POSITIVE, max_size=20))
def test_the_sum_is_exact_over_all_of_float64(values: list[float]) -> None:
    assert Fraction(weights.exact_sum(np.array(values, np.float64)), 2**1074) == sum(map(Fraction, values))


@given(st.lists(POSITIVE.filter(lambda x: x < 1e300), min_size=1, max_size=20))
def test_a_sum_is_a_float64_and_what_it_leaves(values: list[float]) -> None:
    exact = sum(map(Fraction, values))
    nearest, rest = weights.as_float_pair(weights.exact_sum(np.array(values, np.float64)))
    assert nearest == float(exact)
    assert rest == float(exact - Fraction(nearest))


@given(st.lists(st.floats(2.0**-64, 2.0**64), min_size=1, max_size=20))
def test_limbs_hold_the_sum_of_the_weights_of_an_exact_total(values: list[float]) -> None:
    limbs, exponent = weights.as_limbs(weights.exact_sum(np.array(values, np.float64)))
    held = sum(int(limb) << (64 * index) for index, limb in enumerate(limbs)) * Fraction(2) ** exponent
    assert held == sum(map(Fraction, values))


def test_the_widest_sum_of_an_exact_total_fits_into_the_limbs() -> None:
    low, high = EXACT_RANGE
    units = weights.exact_sum(np.array([low, low * (1 + 2.0**-52), *[high] * 65_533]))
    limbs, exponent = weights.as_limbs(units)
    assert sum(int(limb) << (64 * index) for index, limb in enumerate(limbs)) << (exponent + 1074) == units


def test_a_sum_beyond_float64_is_refused() -> None:
    with pytest.raises(WeightRange, match="too large"):
        weights.as_float_pair(weights.exact_sum(np.array([1.7e308, 1.7e308])))


@pytest.mark.parametrize("accumulate", ACCUMULATORS)
def test_the_edges_of_the_range_are_weights_and_what_lies_beyond_is_not(accumulate: str) -> None:
    low, high = EXACT_RANGE
    assert weights.checked([0.0, -0.0, low, high], accumulate).tolist() == [0.0, 0.0, low, high]
    beyond = [np.nextafter(low, 0), np.nextafter(high, np.inf), 5e-324, 1e308]
    for value in beyond:
        if accumulate == "exact":
            with pytest.raises(WeightRange, match=r"weight 2 is .* expected 0 or a number between"):
                weights.checked([1.0, 1.0, float(value)], accumulate)
        else:
            assert weights.checked([float(value)], accumulate).tolist() == [value]


@given(st.lists(POSITIVE, min_size=1, max_size=9))
def test_the_scale_of_float_sums_is_that_of_the_largest_weight(values: list[float]) -> None:
    array = np.array(values, np.float64)
    scaled = weights.scaled(array, weights.scale_of(array), "float64")
    assert scaled.max() < 2
    assert scaled.max() >= 1 or not array.any()


def test_a_weight_too_large_beside_the_totals_first_is_refused_and_changes_nothing() -> None:
    cpu = backend("cpu")
    total = cpu.total(3, "float32")
    cpu.fold(total, [np.ones(3, np.float32)], [1e-30], "float32")
    with pytest.raises(WeightRange, match=r"weight 0 is 1e\+30: too large"):
        cpu.fold(total, [np.ones(3, np.float32)], [1e30], "float32")
    out = np.empty(3, np.float32)
    cpu.finish(total, out, "float32")
    assert (total.terms, out.tolist()) == (1, [1.0] * 3)
