"""The bound on one update's share of a sum."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flcore import Aggregator
from flcore.aggregation.weight_shares import cap_weights
from flcore.errors import AggregationError, JobError
from flcore.model.spec import ModelSpec

WEIGHTS = st.lists(st.floats(1e-3, 1e9), min_size=1, max_size=12)


@given(WEIGHTS, st.floats(0.05, 1.0))
def test_no_weight_is_above_its_share_and_none_is_lower_than_need_be(weights: list[float], max_share: float) -> None:
    if len(weights) * max_share < 1:
        with pytest.raises(AggregationError, match="needs at least"):
            cap_weights(weights, max_share)
        return
    capped = cap_weights(weights, max_share)
    total = sum(map(Fraction, capped))
    assert all(Fraction(weight) <= Fraction(max_share) * total * (1 + Fraction(1, 10**9)) for weight in capped)
    assert all(after <= before for before, after in zip(weights, capped, strict=True))
    for before, after in zip(weights, capped, strict=True):  # what is capped has exactly the largest share
        if after < before:
            assert Fraction(after) >= Fraction(max_share) * total * (1 - Fraction(1, 10**9))


@given(WEIGHTS, st.floats(0.05, 1.0), st.randoms())
def test_the_order_of_the_weights_does_not_matter(weights: list[float], max_share: float, random: object) -> None:
    if len(weights) * max_share >= 1:
        assert sorted(cap_weights(weights, max_share)) == sorted(cap_weights(weights[::-1], max_share))


@pytest.mark.parametrize(
    ("weights", "max_share", "expected"),
    [
        ([1.0, 2.0, 3.0], 1.0, [1.0, 2.0, 3.0]),
        ([5.0, 1.0], 0.5, [1.0, 1.0]),
        ([3.0, 3.0, 3.0], 1 / 3, [3.0, 3.0, 3.0]),
        ([8.0, 6.0, 1.0, 1.0], 0.4, [4.0, 4.0, 1.0, 1.0]),
        ([0.0, 0.0], 0.9, [0.0, 0.0]),
        ([0.0, 7.0, 7.0], 0.5, [0.0, 7.0, 7.0]),
    ],
)
def test_capped_by_hand(weights: list[float], max_share: float, expected: list[float]) -> None:
    assert cap_weights(weights, max_share) == pytest.approx(expected)


def aggregated(weights: dict[str, float], max_share: float) -> tuple[float, dict[str, float]]:
    """Return the mean of client i's value i, and the weights that were capped."""
    aggregator = Aggregator(ModelSpec.of({"w": np.zeros(1, np.float32)}), max_share=max_share)
    for number, (client, weight) in enumerate(weights.items()):
        with aggregator.update(client=client, weight=weight) as update:
            update.write("w", np.array([number], np.float32))
    return float(aggregator.finish().arrays()["w"][0]), aggregator.capped_weights


def test_an_aggregation_counts_with_the_capped_weight() -> None:
    assert aggregated({"a": 100.0, "b": 10.0, "c": 10.0}, 0.5) == (0.75, {"a": 20.0})
    assert aggregated({"a": 1.0, "b": 1.0}, 0.5) == (0.5, {})


def test_too_few_updates_are_refused() -> None:
    with pytest.raises(AggregationError, match="at least 4 updates with a weight above 0, there are 2"):
        aggregated({"a": 1.0, "b": 1.0}, 0.25)


@pytest.mark.parametrize("max_share", [0.0, 1.5, float("nan")])
def test_a_share_is_between_0_and_1(max_share: float) -> None:
    with pytest.raises(JobError, match="max_share"):
        Aggregator(ModelSpec.of({"w": np.zeros(1, np.float32)}), max_share=max_share)


def test_a_sum_that_has_begun_cannot_cap_weights() -> None:
    with pytest.raises(JobError, match="choose the plan batch"):
        Aggregator(ModelSpec.of({"w": np.zeros(1, np.float32)}), max_share=0.5, plan="streaming")
