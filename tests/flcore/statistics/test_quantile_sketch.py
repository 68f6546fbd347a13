"""The quantile sketch against NumPy, on hostile distributions."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from flcore.statistics.quantile_sketch import (
    Bucket,
    add_sketches,
    count_in_buckets,
    merge_small_buckets,
    quantile,
)

QUANTILES = (0.0, 0.001, 0.01, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99, 0.999, 1.0)

ROUNDING = 1e-9
"""The logarithm of a value at a bucket's edge is rounded, so that it may be in the next bucket."""

SHAPES: dict[str, Callable[[np.random.Generator, int], Any]] = {
    "normal": lambda draw, n: draw.normal(size=n),
    "heavy tail": lambda draw, n: draw.standard_cauchy(n),
    "30 decades on both sides": lambda draw, n: draw.choice([-1.0, 1.0], n) * 10 ** draw.uniform(-300, 30, n),
    "subnormal": lambda draw, n: draw.integers(0, 9, n) * 5e-324,
    "one value": lambda draw, n: np.full(n, -17.25),
    "two far values": lambda draw, n: draw.choice([1e-30, 1e30], n),
    "zeros and ones": lambda draw, n: draw.integers(0, 2, n).astype(float),
    "negative zero": lambda draw, n: np.where(draw.random(n) < 0.5, -0.0, 0.0),
    "at the edges of buckets": lambda draw, n: (1.01 / 0.99) ** draw.integers(-300, 300, n),
    "sorted": lambda draw, n: np.arange(n) - n / 2,
    "largest": lambda draw, n: draw.choice([-1e30, 0.0, 1e30], n),
}


def close(estimate: float, value: float, relative_error: float) -> bool:
    # Below the smallest normal number the spacing of float64 is wider than any relative error.
    return abs(estimate - value) <= relative_error * (1 + ROUNDING) * abs(value) + 5e-324


@pytest.mark.parametrize("relative_error", [0.001, 0.01, 0.2])
@pytest.mark.parametrize("n", [1, 2, 7, 10_000])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_quantile_is_within_the_relative_error(shape: str, n: int, relative_error: float) -> None:
    values = SHAPES[shape](np.random.default_rng(n), n)
    sketch = count_in_buckets(values, relative_error)
    assert sum(sketch.values()) == n
    for q in QUANTILES:
        exact = float(np.quantile(values, q, method="lower"))
        estimate = quantile(sketch, q, relative_error)
        assert close(estimate, exact, relative_error), (q, estimate, exact)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_sketch_of_the_parts_is_that_of_the_whole(shape: str) -> None:
    values = SHAPES[shape](np.random.default_rng(1), 5_000)
    parts = [count_in_buckets(part, 0.01) for part in np.split(values, [3, 700, 701, 4_000])]
    assert add_sketches(parts) == count_in_buckets(values, 0.01)


@pytest.mark.parametrize("min_count", [1, 2, 10, 250])
@pytest.mark.parametrize("shape", SHAPES)
def test_small_buckets_are_merged_and_few_ranks_change(shape: str, min_count: int) -> None:
    sites = [SHAPES[shape](np.random.default_rng(seed), 1_000) for seed in range(3)]
    merged = [merge_small_buckets(count_in_buckets(values, 0.01), min_count) for values in sites]
    for sketch in merged:
        assert sum(sketch.values()) == 1_000
        assert min(sketch.values()) >= min_count
    together, total = np.sort(np.concatenate(sites)), add_sketches(merged)
    moved = len(sites) * (min_count - 1)
    for q in QUANTILES:
        estimate, rank = quantile(total, q, 0.01), int(np.floor(q * (len(together) - 1)))
        near = together[max(0, rank - moved) : rank + moved + 1]
        assert any(close(estimate, value, 0.01) for value in near.tolist()), (q, estimate)


def test_a_sketch_that_is_too_small_has_no_bucket_left() -> None:
    assert merge_small_buckets({Bucket(1, 1): 2, Bucket(1, 9): 2}, 5) == {}


def test_negative_values_come_before_zero_and_large_ones_first() -> None:
    values = np.array([-100.0, -1.0, 0.0, 1.0, 100.0])
    sketch = count_in_buckets(values, 0.01)
    estimates = [quantile(sketch, q, 0.01) for q in (0.0, 0.25, 0.5, 0.75, 1.0)]
    assert estimates == sorted(estimates)
    assert np.allclose(estimates, values, rtol=0.01)


def test_an_empty_sketch_has_no_quantile() -> None:
    with pytest.raises(ValueError, match="expected a sketch with values"):
        quantile({}, 0.5, 0.01)
