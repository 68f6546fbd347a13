"""What leaves a site: nothing of a group below the smallest count; and what the server refuses to take."""

from itertools import combinations
from typing import Any

import numpy as np
import pytest

from flcore import JobError, Site, Task
from flcore.statistics import site_statistics
from flcore.statistics.merged_statistics import merge_parts, parse_part
from flcore.statistics.plan import StatisticsPlan
from flcore.statistics.site_statistics import suppress_small_bins


def task(site: dict[str, Any] | None = None, **hyperparameters: Any) -> Task:
    return Task("statistics", 1, 1, 0, hyperparameters, Site("a", config=site or {}))


def sent(column: Any, site: dict[str, Any] | None = None, **hyperparameters: Any) -> dict[str, float]:
    return dict(site_statistics({"x": column}, task(site, **hyperparameters)).metrics)


@pytest.mark.parametrize("count", range(6))
def test_nothing_of_a_column_below_the_smallest_count_is_sent(count: int) -> None:
    assert sent(np.arange(float(count)), min_count=6, bins={"x": [2, 4]}) == {}


def test_missing_values_do_not_count() -> None:
    values = np.array([1.0, np.nan, 2.0, np.nan, 3.0])
    assert sent(values, min_count=4) == {}
    assert sent(values, min_count=3)["count:x"] == 3


@pytest.mark.parametrize("seed", range(40))
def test_no_count_that_is_sent_and_no_sum_of_those_that_are_not_is_small(seed: int) -> None:
    draw = np.random.default_rng(seed)
    min_count, n = int(draw.integers(1, 30)), int(draw.integers(1, 400))
    values = draw.normal(50, 20, n).round(int(draw.integers(0, 3)))
    edges = np.unique(draw.integers(0, 100, int(draw.integers(1, 12)))).tolist()
    found = sent(values, min_count=min_count, bins={"x": edges})
    if n < min_count:
        assert found == {}
        return
    counts = {name: value for name, value in found.items() if not name.startswith(("mean", "deviation"))}
    assert all(value >= min_count for value in counts.values())
    bins = sum(value for name, value in counts.items() if name.startswith("bin."))
    assert n - bins == 0 or n - bins >= min_count, "the rest follows from the count of the column"
    buckets = sum(value for name, value in counts.items() if not name.startswith(("bin.", "count")))
    assert buckets == n


@pytest.mark.parametrize("min_count", [1, 2, 5])
def test_bins_that_are_left_out_hold_enough_together(min_count: int) -> None:
    sizes = (0, 1, 2, 4, 5, 9)
    for counts in combinations([*sizes, *sizes], 4):
        found = suppress_small_bins(list(counts), min_count)
        assert all(counts[number] == count >= min_count for number, count in found.items())
        rest = sum(counts) - sum(found.values())
        assert rest == 0 or rest >= min_count or not found


def test_the_smallest_and_the_largest_value_are_not_sent() -> None:
    values = np.concatenate([np.linspace(20, 60, 100), [117.0]])  # one very old person
    found = sent(values, min_count=10)
    plan = StatisticsPlan.of({"min_count": 10})
    merged = merge_parts({"a": parse_part(found, plan)}, plan)["x"]
    assert merged["maximum"] < 61
    assert merged["minimum"] > 20


@pytest.mark.parametrize("column", [[True, False, True], [1, 2, 3], np.array([1, 2, 3], np.uint8), [1.5, None, 2, 3]])
def test_columns_are_numbers_of_any_kind(column: Any) -> None:
    assert sent(column, min_count=3)["count:x"] == 3


@pytest.mark.parametrize("table", [7, {"min_count": "20"}, {"min_count": 0}])
def test_a_wrong_table_of_the_site_is_refused(table: Any) -> None:
    with pytest.raises(JobError):
        sent([1.0] * 50, {"statistics": table}, min_count=10)


def test_a_site_raises_the_smallest_count_and_cannot_lower_it() -> None:
    values = np.arange(15.0)
    assert sent(values, {"statistics": {"min_count": 20}}, min_count=10) == {}
    assert sent(values, {"statistics": {"min_count": 1}}, min_count=20) == {}
    assert sent(values, {"statistics": {"min_count": 12}}, min_count=10)["count:x"] == 15


@pytest.mark.parametrize(
    "column",
    [
        ["1", "Miller"],
        [object()],
        [[1.0], [2.0, 3.0]],
        [1 + 2j],
        np.array([1 + 2j]),
        np.array(["2026-11-30"], dtype="datetime64[D]"),
    ],
)
def test_a_column_without_numbers_is_refused_without_a_value_in_the_message(column: Any) -> None:
    with pytest.raises(ValueError) as refused:
        sent(column, min_count=1)
    assert str(refused.value) == "column 'x': expected numbers"
    assert refused.value.__suppress_context__


@pytest.mark.parametrize("value", [np.inf, -np.inf, 2e30])
def test_a_value_that_no_server_takes_is_refused(value: float) -> None:
    with pytest.raises(ValueError) as refused:
        sent([1.0, value], min_count=1)
    assert str(refused.value) == "column 'x': expected values of at most 1e+30, got larger or infinite ones"


@pytest.mark.parametrize("name", ["", "a" * 101, "a\nb", 3])
def test_a_name_that_cannot_be_sent_is_refused(name: Any) -> None:
    with pytest.raises(ValueError, match="expected a column's name"):
        site_statistics({name: [1.0]}, task(min_count=1))


@pytest.mark.parametrize(
    ("hyperparameters", "told"),
    [
        ({"min_count": 0}, "min_count: expected a whole number from 1 on, got 0"),
        ({"min_count": True}, "min_count"),
        ({"min_count": 2.5}, "min_count"),
        ({"relative_error": 0}, "relative_error"),
        ({"relative_error": "small"}, "relative_error"),
        ({"bins": [1, 2]}, "bins: expected a table"),
        ({"bins": {"x": []}}, "bins.x: expected edges in ascending order"),
        ({"bins": {"x": [1, 1]}}, "bins.x: expected edges in ascending order"),
        ({"bins": {"x": [1, float("nan")]}}, "bins.x: expected a list of numbers"),
        ({"quantiles": [1.5]}, "quantiles: expected numbers from 0 to 1"),
    ],
)
def test_a_wrong_hyperparameter_is_named(hyperparameters: dict[str, Any], told: str) -> None:
    with pytest.raises(JobError) as refused:
        sent([1.0], **hyperparameters)
    assert str(refused.value).startswith(told)


GOOD = {"count:x": 12.0, "mean:x": 1.0, "deviation:x": 0.0, "positive.0:x": 12.0, "bin.1:x": 12.0}
PLAN = StatisticsPlan.of({"min_count": 10, "bins": {"x": [0, 5]}})


def test_a_valid_part_is_taken() -> None:
    assert parse_part(GOOD, PLAN)["x"].count == 12


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"count:x": 9.0}, "metric 'count:x': expected a whole number, at least min_count = 10, got 9"),
        ({"positive.0:x": 12.5}, "expected a whole number"),
        ({"positive.0:x": -12.0}, "expected a whole number"),
        ({"positive.0:x": 2.0**54}, "expected a whole number"),
        ({"positive.1:x": 10.0}, "do not add up to its count"),
        ({"bin.1:x": 13.0}, "its bins do not match"),
        ({"bin.3:x": 12.0, "bin.1:x": 0.0}, "expected a whole number"),
        ({"bin.4:y": 12.0}, "column 'y': expected a count"),
        ({"deviation:x": -1.0}, "expected a count, a mean and a deviation"),
        ({"median:x": 12.0}, "expected a metric of `flcore.statistics.site_statistics`"),
        ({"loss": 12.0}, "expected a metric of `flcore.statistics.site_statistics`"),
        ({"positive.99999999999:x": 12.0}, "expected a metric"),
    ],
)
def test_a_part_that_no_site_can_have_made_is_refused(changed: dict[str, float], told: str) -> None:
    with pytest.raises(ValueError) as refused:
        parse_part(GOOD | changed, PLAN)
    assert told in str(refused.value)


@pytest.mark.parametrize("missing", ["count:x", "mean:x", "deviation:x", "positive.0:x"])
def test_an_incomplete_part_is_refused(missing: str) -> None:
    with pytest.raises(ValueError):
        parse_part({name: value for name, value in GOOD.items() if name != missing}, PLAN)
