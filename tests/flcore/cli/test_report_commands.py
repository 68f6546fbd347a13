"""`flcore plot`, `flcore report` and `flcore compare`, and the commands of docs/reports.md."""

import json
import re
from importlib.util import find_spec
from pathlib import Path

import pytest

import flcore
from flcore.cli import plot
from flcore.server.events import RunEnded
from flcore.server.history import RoundRecord
from flcore.server.run_archive import RUN_FILE_PATTERN
from tests.flcore.command import said
from tests.flcore.reports.parsed_page import ParsedPage
from tests.flcore.reports.written_runs import FAILED, write_hospital, write_run
from tests.test_readme import blocks, commands

PAGE = (Path(flcore.__file__).parents[1] / "docs/reports.md").read_text()
NEEDS_MATPLOTLIB = pytest.mark.skipif(find_spec("matplotlib") is None, reason="matplotlib is flcore's extra plot")
PNG = b"\x89PNG\r\n\x1a\n"


@NEEDS_MATPLOTLIB
def test_plot_writes_a_figure_into_the_run_or_to_a_file(tmp_path: Path) -> None:
    write_hospital(tmp_path / "run")
    assert said("plot", "run", cwd=tmp_path) == "plot: run/plot.png\n"
    assert (tmp_path / "run/plot.png").read_bytes().startswith(PNG)
    assert said("plot", "run", "--what", "sites", "--out", "new/a.pdf", cwd=tmp_path) == "plot: new/a.pdf\n"
    assert (tmp_path / "new/a.pdf").read_bytes().startswith(b"%PDF")


def test_report_writes_a_page_and_says_how_the_run_stands(tmp_path: Path) -> None:
    write_hospital(tmp_path / "run", FAILED)
    printed = said("report", "run", cwd=tmp_path)
    shown = r"report: run/report\.html \(failed: round 4 has 1 update, and its quorum is 2, \d+ kB\)\n"
    assert re.fullmatch(shown, printed)
    assert "hospital" in ParsedPage((tmp_path / "run/report.html").read_text()).texts


def test_fresh_moves_plot_and_report_along_with_their_run() -> None:
    assert all(RUN_FILE_PATTERN.fullmatch(name) for name in ("plot.png", "report.html"))


def test_compare_prints_one_table(tmp_path: Path) -> None:
    write_hospital(tmp_path / "one")
    write_hospital(tmp_path / "two", FAILED)
    lines = said("compare", "one", "two", cwd=tmp_path).splitlines()
    cells = {re.split(r"\s{2,}", line)[0]: re.split(r"\s{2,}", line.strip())[1:] for line in lines}
    assert cells["state"] == ["finished", "failed: round 4 has 1 update, and its quorum is 2"]
    assert cells["validation accuracy, last"] == ["0.7500", "0.7500"]
    told = json.loads(said("compare", "one", "two", "--json", cwd=tmp_path))
    assert [run["state"] for run in told["runs"]] == ["finished", "failed"]


def test_compare_writes_a_page(tmp_path: Path) -> None:
    for name in ("one", "two"):
        write_hospital(tmp_path / name)
    assert said("compare", "one", "two", "--out", "c.html", cwd=tmp_path) == "comparison: c.html\n"
    assert "Runs side by side" in ParsedPage((tmp_path / "c.html").read_text()).tables


def test_hostile_text_controls_no_terminal(tmp_path: Path) -> None:
    control = "\x1b[2J\u202e"
    for name in ("one", "two"):
        end = RunEnded(f"the job failed: {control}", True, "failed")
        write_run(tmp_path / name, [RoundRecord(1, validate={control: 0.5})], job=control, end=end)
    printed = said("compare", "one", "two", cwd=tmp_path) + said("report", "one", cwd=tmp_path)
    assert "\x1b" not in printed and "\u202e" not in printed and printed.count(r"\x1b[2J\u202e") > 5


@pytest.mark.parametrize(
    ("arguments", "code", "expected"),
    [
        (["report", "nowhere"], 1, "expected the directory of a run"),
        (["report", "other"], 1, "which holds run.json"),
        (["plot", "run", "--out", "a.gif"], 2, "expected FILE.png or FILE.svg or FILE.pdf, got 'a.gif'"),
        (["report", "run", "--out", "a.txt"], 2, "expected FILE.html, got 'a.txt'"),
        (["compare", "run"], 2, "expected two runs or more, got one"),
        (["compare", "run", "run", "--out", "a.txt"], 2, "expected FILE.html or FILE.png"),
    ],
)
def test_an_error_says_what_was_expected(arguments: list[str], code: int, expected: str, tmp_path: Path) -> None:
    write_run(tmp_path / "run", [RoundRecord(1)])
    (tmp_path / "other").mkdir()
    assert expected in said(*arguments, cwd=tmp_path, code=code)


@NEEDS_MATPLOTLIB
def test_plot_of_metrics_without_one_is_an_error(tmp_path: Path) -> None:
    write_run(tmp_path / "run", [RoundRecord(1)])
    printed = said("plot", "run", "--what", "metrics", cwd=tmp_path, code=1)
    assert "expected something to plot in run, got none: no round has a metric; choose another figure" in printed
    assert not (tmp_path / "run/plot.png").exists()


def test_without_matplotlib_the_error_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plot, "find_spec", lambda _: None)
    write_hospital(tmp_path / "run")
    assert "install flcore's extra plot" in said("plot", "run", cwd=tmp_path, code=1)


@NEEDS_MATPLOTLIB
def test_the_commands_of_the_page_in_their_order(tmp_path: Path) -> None:
    """The page's `flcore run` and `flcore download` make runs; here they are written."""
    for name in ("runs/digits", "runs/slow"):
        write_hospital(tmp_path / name)
    write_hospital(tmp_path / "digits-12/run")
    ran = 0
    for script in blocks("sh", PAGE):
        for name, *words in commands(script):
            assert name == "flcore"
            if words[0] in ("plot", "report", "compare"):
                said(*words, cwd=tmp_path)
                ran += 1
    assert ran >= 6
    for made in ("runs/digits/plot.png", "runs/digits/report.html", "digits-12/report.html", "runs.html"):
        assert (tmp_path / made).stat().st_size > 1_000, made
