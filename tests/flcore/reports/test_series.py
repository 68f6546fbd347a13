"""The series that figures draw, compared with the history they are made from."""

import statistics

import pytest

from flcore.reports.series import (
    REST,
    binned,
    metric_names,
    metric_points,
    phase_seconds,
    round_seconds,
    site_series,
    thinned,
    upper_limit,
)
from flcore.server.history import Participation, RoundRecord
from tests.flcore.reports.written_runs import hospital_rounds, many_rounds


def test_metrics_are_those_of_the_rounds_that_have_them() -> None:
    history = hospital_rounds()
    assert metric_names(history) == ["accuracy", "loss"]
    assert metric_points(history, "validate", "accuracy") == [(1, 0.5), (2, 0.75)]
    assert metric_points(history, "train", "loss") == [(1, 0.4), (2, 0.75)]
    assert metric_points(history, "train", "accuracy") == []


def test_a_metric_that_is_not_finite_is_no_point() -> None:
    history = [RoundRecord(1, train={"loss": float("nan")}), RoundRecord(2, train={"loss": 1.0})]
    assert metric_points(history, "train", "loss") == [(2, 1.0)]


def test_sites_are_each_client_of_each_round() -> None:
    loss, seconds = site_series(hospital_rounds())
    assert loss.name == "loss" and loss.by_site == {"a": [(1, 1.0), (2, 0.75)], "b": [(1, 0.5)], "c": [(1, 0.25)]}
    assert loss.spread == [(1, 0.25, 0.5, 1.0), (2, 0.75, 0.75, 0.75)]
    assert seconds.name == "seconds" and seconds.by_site["c"] == [(1, 4.0)]


def test_of_many_sites_those_far_from_the_others_are_named() -> None:
    history = many_rounds(200, 30)
    loss, seconds = site_series(history)
    assert loss.outliers == ["site-007"] and seconds.outliers == ["site-009"]
    for spread, record in zip(loss.spread, history, strict=True):
        values = [update.metrics["loss"] for update in record.updates.values()]
        assert spread == (record.round, min(values), statistics.median(values), max(values))
    for spread, record in zip(loss.spread_without(loss.outliers), history, strict=True):
        assert spread.high == max(each.metrics["loss"] for name, each in record.updates.items() if name != "site-007")


def test_sites_with_equal_values_have_no_outlier_and_one_that_differs_is_one() -> None:
    def record(values: list[float]) -> RoundRecord:
        return RoundRecord(1, updates={f"s{i}": Participation(1.0, {"m": v}, 1, 1.0) for i, v in enumerate(values)})

    assert site_series([record([1.0] * 9)])[0].outliers == []
    assert site_series([record([1.0] * 9 + [2.0])])[0].outliers == ["s9"]


def test_a_site_of_few_rounds_is_no_outlier() -> None:
    history = many_rounds(20, 100)
    history[50].updates["late"] = Participation(1.0, {"loss": 1e6}, 1, 1.0)
    assert "late" not in site_series(history)[0].outliers


def test_phases_and_what_is_in_none_are_the_whole_round() -> None:
    history = hospital_rounds()
    phases = phase_seconds(history)
    assert phases == {"train": [4.0, 60.0, 60.0], "aggregate": [0.5, 0.5, 0.0], REST: [0.5, 0.5, 0.0]}
    assert [sum(column) for column in zip(*phases.values(), strict=True)] == round_seconds(history) == [5.0, 61.0, 60.0]


def test_a_thinned_line_keeps_its_ends_and_its_peaks() -> None:
    points = [(number, float(number % 10)) for number in range(10_000)]
    points[5_321] = (5_321, 99.0)
    kept = thinned(points, 400)
    assert len(kept) <= 402 and kept[0] == points[0] and kept[-1] == points[-1]
    assert (5_321, 99.0) in kept and kept == sorted(kept)
    assert thinned(points[:400], 400) == points[:400]


def test_bins_have_the_mean_of_all() -> None:
    values = [float(each * each) for each in range(500)]
    assert len(binned(values, 120)) <= 120
    assert sum(binned(values, 100)) * 5 == pytest.approx(sum(values))


@pytest.mark.parametrize(
    ("values", "expected"),
    [([1.0] * 99 + [50.0], 1.25), ([1.0] * 99 + [2.0], None), ([0.0] * 20, None), ([1.0, 100.0], None), ([], None)],
)
def test_an_axis_is_cut_only_above_a_few_peaks(values: list[float], expected: float | None) -> None:
    assert upper_limit(values) == expected
