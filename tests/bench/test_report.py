"""The table: what it says of goals, of who is absent, and of a limit that was beaten."""

from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from flcore_bench import Goal, Limit, LimitBeaten, Machine, Report, Row
from flcore_bench import run as bench_run

MACHINE = Machine("processor", 2, 24.0, "Linux", "3.11", "numpy 2.0")
ROW = Row(
    "mean",
    [0.5, 0.25, 0.3],
    bytes=600_000_000,
    limit=Limit("loop", [0.24, 0.24, 0.2], 0.2),
    against={"numpy": 3.0},
    goals=[Goal("numpy", 3.0, 1.4), Goal("of limit", 0.8, 0.85, unit="")],
    note="one",
    series="flcore",
)


def report(**changes: Any) -> Report:
    fields: dict[str, Any] = {
        "command": "flcore bench kernels",
        "date": "2026-11-24",
        "scale": "full",
        "rounds": 7,
        "threads": 2,
        "machine": MACHINE,
        "rows": [ROW],
    }
    return Report(**fields | changes)


def test_a_row_derives_its_figures_from_medians() -> None:
    assert ROW.median_s == 0.3
    assert ROW.bytes_per_s == 2e9
    assert ROW.of_limit == pytest.approx(0.8)
    assert Row("start", [1.0]).of_limit is None and Row("start", [1.0]).bytes_per_s is None


def test_a_table_has_every_figure_and_says_what_was_missed() -> None:
    text = report().text()
    for cell in ("300.0", "250.0..500.0", "2.00", "0.80", "numpy 3.00x", "numpy: 3x (>= 1.4x) met", "one"):
        assert cell in text
    assert "of limit: 0.8 (>= 0.85) missed" in text and "1 goals missed" in text
    assert MACHINE.line in text


def test_an_at_most_goal_is_met_from_below() -> None:
    assert Goal("seconds", 0.7, 0.8, is_at_least=False).is_met
    assert not Goal("seconds", 0.9, 0.8, is_at_least=False).is_met


def test_an_absent_peer_is_shown_as_absent_and_the_run_is_not_full() -> None:
    lacking = report(absent=["torch"])
    line = next(line for line in lacking.text().splitlines() if line.startswith("| torch"))
    assert "absent" in line and "0.0" not in line
    assert "Not a full run: absent are torch." in lacking.text()
    assert report().is_full and not lacking.is_full and not report(scale="small").is_full


def test_few_rounds_are_called_too_few() -> None:
    assert "too few to publish" in report(rounds=3).text()
    assert "too few" not in report().text()


def test_json_comes_back_as_it_was(tmp_path: Path) -> None:
    written = report(absent=["flower"])
    written.write(tmp_path / "figures.json")
    assert Report.read(tmp_path / "figures.json") == written


@pytest.mark.parametrize(
    "seconds",
    [[0.1, 0.1, 0.1], [0.3, 0.3, 0.1]],
    ids=["by the median", "by the fastest round"],
)
def test_a_beaten_limit_fails_the_run(seconds: list[float]) -> None:
    with pytest.raises(LimitBeaten, match=r"faster: .*less than the limit of the same run"):
        report(rows=[ROW, Row("faster", seconds, 1, Limit("loop", [0.2, 0.2, 0.2], 0.15))]).require_limits()


def test_a_limit_beaten_at_a_small_scale_is_told() -> None:
    faster = report(scale="small", rows=[ROW, Row("faster", [0.1], 1, Limit("loop", [0.2], 0.2))])
    faster.require_limits()
    assert "counts at --scale full only:\n- faster: 100.0 ms in the median" in faster.text()
    assert "only" not in report(scale="small").text()


def test_the_limit_may_be_reached_and_missed_by_what_a_timer_errs() -> None:
    report(rows=[ROW, Row("as fast", [0.199], 1, Limit("loop", [0.2], 0.2)), Row("no limit", [0.1])]).require_limits()


def test_a_run_prints_and_writes_before_it_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    faster = Row("faster", [0.1], 1, Limit("loop", [0.2], 0.2))
    monkeypatch.setattr(import_module("flcore_bench.run"), "kernel_rows", lambda scale, threads: [faster])
    with pytest.raises(LimitBeaten):
        bench_run("kernels", "full", json_file=tmp_path / "figures.json")
    assert "faster" in capsys.readouterr().out
    assert Report.read(tmp_path / "figures.json").rows == [faster]
