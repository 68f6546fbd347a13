"""Float64 values rounded once: every dtype against the oracle, near ties and ends."""

from fractions import Fraction

import numpy as np
import pytest

from flcore.aggregation.rule_calls import round_to_dtype
from tests.reference import DTYPES, FLOATS, INTEGERS, nearest


@pytest.mark.parametrize("dtype", FLOATS)
def test_floats_are_rounded_once_ties_to_even(dtype: str) -> None:
    rng = np.random.default_rng(3)
    near = rng.standard_normal(2000).astype(DTYPES[dtype]).astype(np.float64)
    step = np.abs(np.nextafter(near.astype(DTYPES[dtype]), DTYPES[dtype].type(np.inf)).astype(np.float64) - near)
    ties = near + step / 2  # halfway, and a float64 step to either side: where a second rounding goes wrong
    values = np.concatenate([near, ties, np.nextafter(ties, 9), np.nextafter(ties, -9), [0.0, -0.0, 1e-45, -1e-46]])
    found, fits = round_to_dtype(values, dtype)
    assert fits.all()
    for value, got in zip(values.tolist(), found, strict=True):
        allowed = nearest(Fraction(value), dtype)
        assert got in allowed, (value, got)
        if len(allowed) == 2:
            assert not int(np.array([got]).view(f"u{DTYPES[dtype].itemsize}")[0]) & 1, "a tie goes to the even one"


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_what_is_beyond_a_float_does_not_fit(dtype: str) -> None:
    kind = DTYPES[dtype].type
    largest = kind(np.nextafter(kind(np.inf), kind(0)))
    half = (float(largest) - float(np.nextafter(largest, kind(0)))) / 2
    end = float(largest) + half
    values = np.array([float(largest), end, np.nextafter(end, 0), -2 * end, 1e300, np.nan])
    assert round_to_dtype(values, dtype)[1].tolist() == [True, False, True, False, False, False]


@pytest.mark.parametrize("dtype", [name for name in INTEGERS if name != "bool"])
def test_integers_are_rounded_half_to_even_and_kept_in_range(dtype: str) -> None:
    info = np.iinfo(DTYPES[dtype])
    low, high = max(info.min, -(2**53)), min(info.max, 2**53)
    found, fits = round_to_dtype(np.array([0.5, 1.5, 2.5, float(low), float(high)]), dtype)
    assert found.tolist() == [0, 2, 2, low, high] and fits.all()
    assert not round_to_dtype(np.array([low * 2.0 - 1, high * 2.0, np.inf]), dtype)[1].any()
