"""Runs side by side: what differs, what is in common, and what is said where there is nothing to compare."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from flcore.errors import HistoryError
from flcore.reports.comparison import NONE, Comparison, compare_runs, shared_metrics, unique_labels
from flcore.reports.comparison_page import comparison_page
from flcore.reports.reported_run import ReportedRun, read_reported_run
from flcore.server.history import RoundRecord
from tests.flcore.reports.parsed_page import ParsedPage
from tests.flcore.reports.written_runs import FAILED, HOSTILE, history_lines, hospital_rounds, write_run

CONTRACT = {"name": "hospital", "seed": 7, "server": {"rounds": 3, "best": "accuracy:max"}}


def run_of(path: Path, accuracies: list[float], job: str = "hospital") -> ReportedRun:
    records = [
        RoundRecord(number, validate={"accuracy": value}, bytes_sent=100, bytes_received=50, seconds={"round": 2.0})
        for number, value in enumerate(accuracies, 1)
    ]
    return read_reported_run(write_run(path, records, job=job))


def rows(comparison: Comparison) -> dict[str, list[str]]:
    return {row.name: list(row.cells) for row in comparison.rows}


@pytest.fixture
def pair(tmp_path: Path) -> Comparison:
    one = replace(run_of(tmp_path / "one", [0.5, 0.9, 0.8]), contract=CONTRACT)
    other = {**CONTRACT, "seed": 8, "server": {"rounds": 2, "best": "accuracy:max", "rule": "mean"}}
    return compare_runs([one, replace(run_of(tmp_path / "two", [0.6, 0.7]), contract=other)])


def test_runs_are_compared_by_their_histories_and_contracts(pair: Comparison, tmp_path: Path) -> None:
    found = rows(pair)
    assert pair.labels == ["one", "two"]
    assert found["rounds"] == ["3 of 3", "2 of 2"]
    assert found["validation accuracy, last"] == ["0.8000", "0.7000"]
    assert found["validation accuracy, best (max)"] == ["0.9000 (round 2)", "0.7000 (round 2)"]
    assert found["bytes sent"] == ["300 B", "200 B"] and found["time in rounds"] == ["6.000 s", "4.000 s"]
    assert found["seed"] == ["7", "8"]
    assert found["server.rounds"] == ["3", "2"] and found["server.rule"] == [NONE, '"mean"']
    assert "server.best" not in found and "name" not in found
    last = [history_lines(tmp_path / name)[-1].validate["accuracy"] for name in ("one", "two")]
    assert [float(cell) for cell in found["validation accuracy, last"]] == last


def test_the_comparison_as_json(pair: Comparison) -> None:
    told = json.loads(json.dumps(pair.to_json()))
    assert [run["rounds"] for run in told["runs"]] == [3, 2]
    assert told["runs"][0]["metrics"] == {"validate.accuracy": {"last": 0.8, "lowest": 0.5, "highest": 0.9}}
    assert told["contract_differences"]["seed"] == {"one": "7", "two": "8"}


def test_without_a_known_direction_the_range_is_shown(tmp_path: Path) -> None:
    comparison = compare_runs([run_of(tmp_path / "one", [0.5, 0.9, 0.8]), run_of(tmp_path / "two", [0.6])])
    assert rows(comparison)["validation accuracy, range"] == ["0.5000 to 0.9000", "0.6000 to 0.6000"]
    assert "The contract is not in the directory of one, two: its keys are not compared." in comparison.notes
    assert "The runs have the same contract and the same code." in comparison.notes


def test_runs_of_different_jobs_are_compared_as_far_as_they_go(tmp_path: Path) -> None:
    other = write_run(
        tmp_path / "other", [RoundRecord(1, validate={"auc": 1.0}, bytes_sent=1)], job="clinic", end=FAILED
    )
    comparison = compare_runs([run_of(tmp_path / "one", [0.5]), read_reported_run(other)])
    assert comparison.notes[0] == (
        "These are runs of different jobs (hospital, clinic). What they have in common is compared."
    )
    assert "No two of the runs have a metric in common." in comparison.notes
    found = rows(comparison)
    assert not [name for name in found if "accuracy" in name or "auc" in name]
    assert found["state"][1] == "failed: round 4 has 1 update, and its quorum is 2"


def test_a_metric_of_two_of_three_runs_is_compared(tmp_path: Path) -> None:
    empty = read_reported_run(write_run(tmp_path / "empty", [RoundRecord(1)]))
    runs = [run_of(tmp_path / "one", [0.5]), empty, run_of(tmp_path / "two", [0.6])]
    assert shared_metrics(runs) == [("validate", "accuracy")]
    assert rows(compare_runs(runs))["validation accuracy, last"] == ["0.5000", NONE, "0.6000"]


def test_runs_of_the_same_directory_name_get_their_ids(tmp_path: Path) -> None:
    runs = [run_of(tmp_path / name / "digits", [0.5]) for name in ("x", "y")]
    assert unique_labels(runs) == [f"digits {run.id}" for run in runs]
    assert len(set(unique_labels([runs[0], runs[0]]))) == 2


def test_the_page_has_the_table_and_is_escaped(tmp_path: Path) -> None:
    records = [replace(record, validate={HOSTILE: 0.5}) for record in hospital_rounds()]
    runs = [read_reported_run(write_run(tmp_path / name, records, job=HOSTILE)) for name in ("one", "two")]
    comparison = compare_runs([replace(run, contract={HOSTILE: f"{HOSTILE}{index}"}) for index, run in enumerate(runs)])
    html = comparison_page(comparison)
    page = ParsedPage(html)
    assert "<script" not in html and "<script>alert(1)</script>" in page.text
    table = page.tables["Runs side by side"]
    assert table[0] == ["What", "one", "two"]
    assert [row[1:] for row in table if row[0] == "rounds"] == [["3", "3"]]


def test_the_figure_has_a_line_for_each_run(pair: Comparison, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from flcore.reports.comparison_figure import draw_comparison

    (axes,) = draw_comparison(pair).axes
    drawn = [list(map(tuple, line.get_xydata())) for line in axes.lines]  # type: ignore[arg-type]
    assert drawn == [
        [(record.round, record.validate["accuracy"]) for record in history_lines(tmp_path / name)]
        for name in ("one", "two")
    ]
    assert [each.get_text() for each in axes.texts] == ["one 0.8", "two 0.7"]


def test_without_a_common_metric_there_is_no_figure(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from flcore.reports.comparison_figure import draw_comparison

    runs = [read_reported_run(write_run(tmp_path / name, [RoundRecord(1)])) for name in ("one", "two")]
    with pytest.raises(HistoryError, match=r"expected a metric that two of the runs have, got none in one, two"):
        draw_comparison(compare_runs(runs))
