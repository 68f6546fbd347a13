"""The plot: one bar per series, in GB of clients' models per second, with the limit of its run."""

from collections.abc import Sequence
from pathlib import Path
from statistics import median

from flcore import FlcoreError
from flcore_bench.report import Row

OURS, OTHERS, LIMIT = "#1f5fa8", "#b9c2cc", "#b5482a"


class NothingToPlot(FlcoreError):
    """matplotlib is not installed, or no row has a series."""


def bars(rows: Sequence[Row]) -> list[tuple[str, float, float]]:
    """Return each series with its GB/s and its limit's, fastest first.

    A series that was measured in several processes (flcore next to every peer) is the median of them.
    """
    series = dict.fromkeys(row.series for row in rows if row.series and row.bytes and row.limit)
    found = []
    for name in series:
        own = [row for row in rows if row.series == name and row.limit]
        speed = median(row.bytes / row.median_s / 1e9 for row in own)
        limit = median(row.bytes / row.limit.median_s / 1e9 for row in own if row.limit)
        found.append((name, speed, limit))
    return sorted(found, key=lambda bar: -bar[1])


def plot(rows: Sequence[Row], path: Path) -> None:
    """Draw the rows that have a series into a PNG file."""
    found = bars(rows)
    if not found:
        raise NothingToPlot("this report has no row for a plot: plot the kernels or the peers")
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise NothingToPlot("a plot needs matplotlib: pip install 'flcore[plot]'") from error
    names, speeds, limits = zip(*found, strict=True)
    figure = Figure(figsize=(8.0, 0.9 + 0.36 * len(found)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    places = list(range(len(found)))
    axes.barh(places, speeds, 0.62, color=[OURS if name.startswith("flcore") else OTHERS for name in names])
    axes.vlines(limits, [place - 0.5 for place in places], [place + 0.5 for place in places], color=LIMIT, lw=2)
    for place, speed, limit in zip(places, speeds, limits, strict=True):
        inside = speed > 0.8 * limit
        axes.annotate(
            f"{speed:.1f}",
            (speed, place),
            xytext=(-5 if inside else 5, 0),
            textcoords="offset points",
            ha="right" if inside else "left",
            va="center",
            color="white" if inside and names[place].startswith("flcore") else "#222222",
        )
    axes.annotate(
        "this machine's limit", (limits[0], -0.62), ha="right", va="bottom", color=LIMIT, annotation_clip=False
    )
    axes.set_yticks(places, names)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.06 * max(*limits, *speeds))
    axes.set_ylim(len(found) - 0.4, -1.1)
    axes.set_xlabel("GB of clients' models per second")
    axes.tick_params(axis="y", length=0)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.grid(axis="x", alpha=0.25)
    axes.set_axisbelow(True)
    figure.savefig(path, dpi=150)
