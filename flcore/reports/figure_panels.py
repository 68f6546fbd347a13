"""One panel of a figure: its axes without clutter, its lines with their names beside them. Needs matplotlib."""

from collections.abc import Sequence
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from flcore.reports.labels import pushed_apart, shortened
from flcore.reports.palette import FAINT, GREY, INK
from flcore.reports.series import thinned, upper_limit
from flcore.server.history import RoundRecord

LABEL_POINTS = 8.0
LABEL_GAP = 0.075
"""The smallest distance of two labels, as a share of the panel's height."""

MAX_LABEL_CHARACTERS = 22
MAX_LINE_POINTS = 2_000


class PanelLine(NamedTuple):
    """A line of a panel: its label, its points, and how it is drawn."""

    label: str
    points: Sequence[tuple[float, float]]
    colour: str
    width: float = 1.8


def prepare(axes: Axes, history: Sequence[RoundRecord], title: str, unit: str = "") -> None:
    """Give a panel its title, a light grid, and the rounds of a history below it."""
    axes.set_title(_plain(title), loc="left", fontsize=10, color=INK, fontweight="bold")
    if unit:
        axes.set_ylabel(unit, fontsize=LABEL_POINTS, color=GREY)
    axes.set_xlabel("round", fontsize=LABEL_POINTS, color=GREY)
    axes.grid(axis="y", color=FAINT, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(GREY)
    axes.tick_params(labelsize=LABEL_POINTS, colors=GREY, length=0)
    axes.set_xlim(history[0].round - 0.6, history[-1].round + 0.6)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True, min_n_ticks=1, steps=[1, 2, 5, 10]))
    axes.yaxis.set_major_locator(MaxNLocator(nbins=5))


def draw_lines(axes: Axes, lines: Sequence[PanelLine]) -> None:
    """Draw lines. A line of one point is a dot. The names are written by `label_ends`."""
    for line in lines:
        points = thinned([(int(x), y) for x, y in line.points], MAX_LINE_POINTS)
        marker = "o" if len(points) == 1 else ""
        axes.plot(*zip(*points, strict=True), color=line.colour, linewidth=line.width, marker=marker, markersize=4)


def label_ends(axes: Axes, ends: Sequence[tuple[float, str, str]]) -> None:
    """Write names right of the panel, each at the height of its line's end. Limits of the axes must not change later.

    Args:
        axes: The panel.
        ends: The height, the name and the colour of each.
    """
    low, high = axes.get_ylim()
    shares = [min(1.0, max(0.0, (height - low) / (high - low))) for height, _, _ in ends]
    for share, (_, text, colour) in zip(pushed_apart(shares, LABEL_GAP, 0.0, 1.0), ends, strict=True):
        label = _plain(shortened(text, MAX_LABEL_CHARACTERS))
        axes.annotate(
            label,
            (1.0, share),
            xycoords="axes fraction",
            xytext=(5, 0),
            textcoords="offset points",
            va="center",
            fontsize=LABEL_POINTS,
            color=colour,
            annotation_clip=False,
        )


def cut_peaks(axes: Axes, points: Sequence[tuple[float, float]], unit: str) -> None:
    """Cut the axis above the usual values, if a few peaks would make the others flat, and say how high they are."""
    limit = upper_limit(value for _, value in points)
    if limit is None:
        axes.set_ylim(bottom=0)
        return
    axes.set_ylim(0, limit)
    above = sorted((point for point in points if point[1] > limit), key=lambda point: -point[1])
    shown = ", ".join(f"{value:.3g} {unit} in round {round_number:g}" for round_number, value in above[:2])
    more = f" and {len(above) - 2} more" if len(above) > 2 else ""
    axes.set_title(f"axis cut: {shown}{more}", loc="right", fontsize=LABEL_POINTS - 0.5, color=GREY)


def say(axes: Axes, text: str) -> None:
    """Write a text in place of a panel's content."""
    axes.set_axis_off()
    axes.text(0.0, 0.5, text, transform=axes.transAxes, fontsize=10, color=GREY, va="center")


def _plain(text: str) -> str:
    """Return a text of which matplotlib takes no part as a formula."""
    return text.replace("$", r"\$")
