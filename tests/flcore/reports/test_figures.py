"""Figures of a run: what is drawn is what the history has, and names stand beside the axes."""

import itertools
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("matplotlib")

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Annotation

from flcore.errors import HistoryError
from flcore.reports.figures import draw_run, save_figure
from flcore.reports.reported_run import read_reported_run
from flcore.server.history import Participation, RoundRecord
from tests.flcore.reports.written_runs import (
    ABORTED,
    FAILED,
    HOSTILE,
    history_lines,
    many_rounds,
    write_hospital,
    write_run,
)

ALL = ("metrics", "sites", "phases", "bytes")


def panels(figure: Figure) -> dict[str, Axes]:
    return {axes.get_title(loc="left"): axes for axes in figure.axes}


def lines(axes: Axes) -> list[list[tuple[float, float]]]:
    return [[(float(x), float(y)) for x, y in np.asarray(line.get_xydata())] for line in axes.lines]


def labels(axes: Axes) -> list[str]:
    return [each.get_text() for each in axes.texts]


def drawn(run: Path, what: Sequence[str] = ALL) -> dict[str, Axes]:
    return panels(draw_run(read_reported_run(run), what))


def test_metrics_are_those_of_the_history(tmp_path: Path) -> None:
    found = drawn(write_hospital(tmp_path / "run"), ["metrics"])
    history = history_lines(tmp_path / "run")
    assert list(found) == ["accuracy", "loss"]
    accuracy = [(float(each.round), each.validate["accuracy"]) for each in history if each.validate]
    assert accuracy in lines(found["accuracy"])
    assert [(float(each.round), each.train["loss"]) for each in history if each.train] in lines(found["loss"])
    assert labels(found["accuracy"]) == ["validation 0.75"]
    assert found["loss"].get_title(loc="right") == "dotted: 1 skipped round"


def test_sites_phases_and_bytes_are_those_of_the_history(tmp_path: Path) -> None:
    found = drawn(write_hospital(tmp_path / "run"))
    history = history_lines(tmp_path / "run")
    assert [*found] == [
        *("accuracy", "loss", "loss, by site"),
        *("seconds until the answer, by site", "seconds per phase", "bytes per round"),
    ]
    site_a = [(float(each.round), each.updates["a"].metrics["loss"]) for each in history if "a" in each.updates]
    assert site_a in lines(found["loss, by site"]) and set(labels(found["loss, by site"])) == {"a", "b", "c"}
    seconds_c = [(1.0, history[0].updates["c"].seconds)]
    assert seconds_c in lines(found["seconds until the answer, by site"])
    heights = [bar.get_height() for bar in found["seconds per phase"].patches if hasattr(bar, "get_height")]
    assert heights[:3] == [each.seconds["train"] for each in history]
    assert sum(heights) == sum(each.seconds["round"] for each in history)
    sent = [(float(each.round), each.bytes_sent / 1_000) for each in history]
    assert sent in lines(found["bytes per round"])


def test_names_stand_beside_the_axes_and_overlap_neither_lines_nor_each_other(tmp_path: Path) -> None:
    figure = draw_run(read_reported_run(write_run(tmp_path / "run", many_rounds(8, 40))), ALL)
    figure.canvas.draw()
    checked = 0
    for axes in figure.axes:
        inside = axes.get_window_extent()
        boxes = [each.get_window_extent() for each in axes.texts if isinstance(each, Annotation)]
        for box in boxes:
            assert box.x0 >= inside.x1 and box.x1 <= figure.bbox.width
        ordered = sorted(boxes, key=lambda box: box.y0)
        for lower, upper in itertools.pairwise(ordered):
            assert upper.y0 - lower.y0 > 0.75 * lower.height
        checked += len(boxes)
        assert axes.get_legend() is None
    assert checked > 15


def test_200_sites_of_500_rounds_are_median_range_and_the_far_ones(large_run: Path) -> None:
    found = drawn(large_run)
    loss = found["loss, by site"]
    assert labels(loss) == ["site-007", "median of 200 sites", "range of the others"]
    assert len(lines(loss)) == 2 and len(loss.collections) == 1
    assert labels(found["seconds until the answer, by site"])[0] == "site-009"
    bars = found["seconds per phase, means of 5 rounds"].patches
    assert len(bars) <= 3 * 120


def test_one_metric_is_one_panel_and_one_round_a_dot(tmp_path: Path) -> None:
    record = RoundRecord(1, ("a",), {"a": Participation(1.0, {}, 1, 1.0)}, validate={"accuracy": 0.5})
    figure = draw_run(read_reported_run(write_run(tmp_path / "run", [record])), ["metrics"])
    (axes,) = figure.axes
    assert lines(axes) == [[(1.0, 0.5)]] and axes.lines[0].get_marker() == "o"
    save_figure(figure, tmp_path / "figures/run.svg")
    assert (tmp_path / "figures/run.svg").read_text().startswith("<?xml")


def test_a_run_without_metrics_says_so_in_the_figure_or_as_an_error(tmp_path: Path) -> None:
    write_run(tmp_path / "run", [RoundRecord(1, seconds={"round": 1.0, "train": 0.5})])
    figure = draw_run(read_reported_run(tmp_path / "run"), ALL)
    said = [text for axes in figure.axes for text in labels(axes)]
    assert "no round has a metric" in said and "no round has an update of a client" in said
    with pytest.raises(HistoryError, match=r"got none: no round has a metric; choose another figure \(--what\)"):
        draw_run(read_reported_run(tmp_path / "run"), ["metrics"])


@pytest.mark.parametrize(("end", "said"), [(FAILED, "failed: round 4 has 1"), (ABORTED, "aborted by alice")])
def test_a_run_that_has_not_finished_says_so(end: Any, said: str, tmp_path: Path) -> None:
    figure = draw_run(read_reported_run(write_hospital(tmp_path / "run", end)), ["metrics"])
    assert said in figure.get_suptitle() and "1 skipped" in figure.get_suptitle()
    with (tmp_path / "run/history.jsonl").open("w"):
        pass
    with pytest.raises(HistoryError, match=f"expected a run with a finished round to plot, got none .*; it is {said}"):
        draw_run(read_reported_run(tmp_path / "run"), ["metrics"])


def test_hostile_names_are_drawn_as_text(tmp_path: Path) -> None:
    metrics = {HOSTILE: 0.5, "\u6a21\u578b $x_1$": 1.0, "_hidden": 2.0}
    record = RoundRecord(1, ("a",), {"a": Participation(1.0, metrics, 1, 1.0)}, train=metrics)
    figure = draw_run(read_reported_run(write_run(tmp_path / "run", [record])), ALL)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        save_figure(figure, tmp_path / "run.png")
    assert (tmp_path / "run.png").stat().st_size > 10_000
