"""The figures of a run: metrics by round and by site, seconds per phase, bytes. Needs matplotlib."""

import warnings
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from flcore.errors import HistoryError
from flcore.number_text import BYTE_UNITS, byte_unit, bytes_text, metric_text, seconds_text
from flcore.reports.figure_panels import PanelLine, cut_peaks, draw_lines, label_ends, prepare, say
from flcore.reports.palette import BLUE, GREY, ORANGE, SERIES
from flcore.reports.reported_run import ReportedRun, rounds_text, state_text
from flcore.reports.series import (
    REST,
    SiteSeries,
    bin_size,
    binned,
    metric_names,
    metric_points,
    phase_seconds,
    round_seconds,
    site_series,
)
from flcore.text import counted, printable

MAX_PANELS = 8
MAX_SITE_LINES = 8
"""With more sites, the panel shows their median, their range, and the sites that are far from the others."""

MAX_COLUMNS = 120
"""With more rounds, a column of a stack is the mean of several."""

MISSING = {
    "metrics": "no round has a metric",
    "sites": "no round has an update of a client",
    "phases": "no round has seconds of phases",
    "bytes": "no round has bytes",
}

PANEL_WIDTH, PANEL_HEIGHT, HEAD_HEIGHT = 9.0, 2.3, 0.7

MESSAGE_HEIGHT = 0.5


class Panel(NamedTuple):
    """A panel of a figure: what draws it, and its height in inches."""

    draw: Callable[[Axes], None]
    height: float = PANEL_HEIGHT


def draw_run(run: ReportedRun, what: Sequence[str]) -> Figure:
    """Draw figures of a run, one below the other.

    Args:
        run: The run.
        what: Which: "metrics", "sites", "phases", "bytes".

    Returns:
        The figure.

    Raises:
        HistoryError: No round has finished, or nothing that is asked for was recorded.
    """
    if not run.history:
        raise HistoryError(f"expected a run with a finished round to plot, got none in {run.label}; {_how(run)}")
    makers = {"metrics": _metric_panels, "sites": _site_panels, "phases": _phase_panels, "bytes": _byte_panels}
    found = {name: list(makers[name](run)) for name in what}
    if not any(found.values()):
        missing = " and ".join(MISSING[name] for name in what)
        advice = "choose another figure (--what)" if len(what) == 1 else "`flcore show RUN` lists its rounds"
        raise HistoryError(f"expected something to plot in {run.label}, got none: {missing}; {advice}")
    panels = [panel for name, each in found.items() for panel in each or [_message(MISSING[name])]]
    heights = [panel.height for panel in panels]
    figure = Figure(figsize=(PANEL_WIDTH, sum(heights) + HEAD_HEIGHT), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(_headline(run), x=0.012, ha="left", fontsize=10.5, color=GREY)
    grid = figure.subplots(len(panels), 1, squeeze=False, gridspec_kw={"height_ratios": heights})
    for axes, panel in zip(grid[:, 0], panels, strict=True):
        panel.draw(axes)
    return figure


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure to a .png, .svg or .pdf file. Its directory is created if missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # a name in a script that the font lacks has boxes
        figure.savefig(path, dpi=150, facecolor="white")


def _headline(run: ReportedRun) -> str:
    skipped = sum(bool(record.skipped) for record in run.history)
    parts = [printable(run.job, 60), rounds_text(run), *([f"{skipped} skipped"] if skipped else [])]
    return " \u00b7 ".join([*parts, printable(state_text(run), 80)]).replace("$", r"\$")


def _how(run: ReportedRun) -> str:
    if run.state == "running":
        return "it runs: try again after its first round"
    return f"it is {printable(state_text(run), 200)}"


def _message(text: str) -> Panel:
    return Panel(lambda axes: say(axes, text), MESSAGE_HEIGHT)


def _metric_panels(run: ReportedRun) -> Iterator[Panel]:
    names = metric_names(run.history)
    yield from (_metric_panel(run, name) for name in names[:MAX_PANELS])
    if len(names) > MAX_PANELS:
        shown = ", ".join(printable(name, 24) for name in names[MAX_PANELS:][:6])
        yield _message(f"and {counted(len(names) - MAX_PANELS, 'more metric')}: {shown}".replace("$", r"\$"))


def _metric_panel(run: ReportedRun, name: str) -> Panel:
    def draw(axes: Axes) -> None:
        prepare(axes, run.history, printable(name, 60))
        kinds = {"train": ("training", ORANGE), "validate": ("validation", BLUE)}
        lines = [
            PanelLine(label, points, colour)
            for kind, (label, colour) in kinds.items()
            if (points := metric_points(run.history, kind, name))
        ]
        draw_lines(axes, lines)
        _mark_skipped(axes, run)
        ends = [(line.points[-1][1], f"{line.label} {metric_text(line.points[-1][1])}", line.colour) for line in lines]
        best = next((each for each in reversed(run.history) if each.is_best and name in each.validate), None)
        if best is not None and run.best_metric and run.best_metric[0] == name:
            value = best.validate[name]
            axes.plot([best.round], [value], "o", color=BLUE, markersize=6, markerfacecolor="white")
            ends.append((value, f"best {metric_text(value)}, round {best.round}", BLUE))
        label_ends(axes, ends)

    return Panel(draw)


def _mark_skipped(axes: Axes, run: ReportedRun) -> None:
    """Mark rounds that left the model unchanged by a line behind the others."""
    for record in run.history:
        if record.skipped:
            axes.axvline(record.round, color=ORANGE, linewidth=0.8, alpha=0.4, linestyle=":", zorder=0)
    count = sum(bool(record.skipped) for record in run.history)
    if count:
        axes.set_title(f"dotted: {counted(count, 'skipped round')}", loc="right", fontsize=7.5, color=ORANGE)


def _site_panels(run: ReportedRun) -> Iterator[Panel]:
    found = site_series(run.history)
    metrics, rest = found[:-1], found[-1:]
    yield from (_site_panel(run, series) for series in [*metrics[: MAX_PANELS - 1], *rest])
    if len(metrics) > MAX_PANELS - 1:
        yield _message(f"and {counted(len(metrics) - MAX_PANELS + 1, 'more metric')} of the sites")


def _site_panel(run: ReportedRun, series: SiteSeries) -> Panel:
    is_time = series.name == "seconds"
    title = "seconds until the answer, by site" if is_time else f"{printable(series.name, 48)}, by site"

    def draw(axes: Axes) -> None:
        prepare(axes, run.history, title, "s" if is_time else "")
        names = list(series.by_site)
        spread, is_spread = series.spread, len(names) > MAX_SITE_LINES
        if is_spread:
            names = list(series.outliers)
            spread = series.spread_without(series.outliers)
            rounds, lows, _, highs = zip(*spread, strict=True)
            axes.fill_between(rounds, lows, highs, color=BLUE, alpha=0.16, linewidth=0)
            draw_lines(axes, [PanelLine("median", [(each.round, each.median) for each in series.spread], BLUE)])
        colours = SERIES[1:] if is_spread else SERIES
        lines = [
            PanelLine(name, series.by_site[name], colours[index % len(colours)], 1.1)
            for index, name in enumerate(names)
        ]
        draw_lines(axes, lines)
        if is_time:
            cut_peaks(axes, [(each.round, each.high) for each in series.spread], "s")
        ends = [(line.points[-1][1], printable(line.label, 64), line.colour) for line in lines]
        if is_spread:
            others = "range of the others" if names else "range"
            ends += [
                (series.spread[-1].median, f"median of {len(series.by_site)} sites", BLUE),
                (spread[-1].high, others, GREY),
            ]
        label_ends(axes, ends)

    return Panel(draw)


def _phase_panels(run: ReportedRun) -> Iterator[Panel]:
    found = phase_seconds(run.history)
    if found:
        yield Panel(lambda axes: _draw_phases(axes, run, found))


def _draw_phases(axes: Axes, run: ReportedRun, phases: dict[str, list[float]]) -> None:
    size = bin_size(len(run.history), MAX_COLUMNS)
    mean = f", means of {size} rounds" if size > 1 else ""
    prepare(axes, run.history, f"seconds per phase{mean}", "s")
    numbers = [record.round for record in run.history][::size]
    columns = {name: binned(values, MAX_COLUMNS) for name, values in phases.items()}
    stacked = list(accumulate(columns.values(), lambda a, b: [x + y for x, y in zip(a, b, strict=True)]))
    below = [0.0] * len(numbers)
    colours = {name: GREY if name == REST else SERIES[index % len(SERIES)] for index, name in enumerate(columns)}
    for (name, heights), top in zip(columns.items(), stacked, strict=True):
        axes.bar(
            numbers, heights, 0.86 * size, bottom=below, color=colours[name], align="edge" if size > 1 else "center"
        )
        below = top
    cut_peaks(axes, list(zip(numbers, stacked[-1], strict=True)), "s")
    seconds = {name: sum(values) for name, values in phases.items()}
    height = axes.get_ylim()[1]
    ends = [
        (height * (1 - index / 10), f"{printable(name, 12)} {seconds_text(seconds[name])}", colours[name])
        for index, name in enumerate(reversed(list(columns)))
    ]
    label_ends(axes, [*ends, (0.0, f"all {seconds_text(sum(round_seconds(run.history)))}", GREY)])


def _byte_panels(run: ReportedRun) -> Iterator[Panel]:
    if any(record.bytes_sent or record.bytes_received for record in run.history):
        yield Panel(lambda axes: _draw_bytes(axes, run))


def _draw_bytes(axes: Axes, run: ReportedRun) -> None:
    unit = byte_unit(max(max(record.bytes_sent, record.bytes_received) for record in run.history))
    scale = 1000 ** BYTE_UNITS.index(unit)
    prepare(axes, run.history, "bytes per round", unit)
    sent = [(record.round, record.bytes_sent / scale) for record in run.history]
    received = [(record.round, record.bytes_received / scale) for record in run.history]
    draw_lines(axes, [PanelLine("sent", sent, BLUE), PanelLine("received", received, ORANGE)])
    cut_peaks(axes, [(number, max(a, b)) for (number, a), (_, b) in zip(sent, received, strict=True)], unit)
    totals = [sum(getattr(each, key) for each in run.history) for key in ("bytes_sent", "bytes_received")]
    label_ends(
        axes,
        [
            (sent[-1][1], f"sent, {bytes_text(totals[0])} in all", BLUE),
            (received[-1][1], f"received, {bytes_text(totals[1])}", ORANGE),
        ],
    )
