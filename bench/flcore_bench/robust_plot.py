"""The heat map of `flcore bench robust`: a row for each rule, a column for each attack."""

from pathlib import Path

import numpy as np

from flcore_bench.plot import NothingToPlot
from flcore_bench.robust_report import RobustReport

DARK_BELOW = 60.0
"""Percent below which the colour is dark, so that the number on it is white."""


def heat_map(report: RobustReport, path: Path) -> None:
    """Draw the accuracies. The suffix of the file is the format, such as .png or .svg."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise NothingToPlot("a plot needs matplotlib: pip install 'flcore[plot]'") from error
    rows, headings = report.rows(), ["none", *report.settings.attacks]
    table = np.array([accuracies for _, accuracies in rows])
    figure = Figure(figsize=(3.6 + 0.62 * len(headings), 1.9 + 0.34 * len(rows)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    image = axes.imshow(table, cmap="cividis", vmin=0, vmax=100, aspect="auto")
    for (row, column), accuracy in np.ndenumerate(table):
        color = "white" if accuracy < DARK_BELOW else "#222222"
        axes.text(column, row, f"{accuracy:.0f}", ha="center", va="center", color=color)
    axes.set_xticks(range(len(headings)), [heading.replace("_", " ") for heading in headings], rotation=30, ha="right")
    axes.set_yticks(range(len(rows)), [rule for rule, _ in rows])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    chosen = report.settings
    axes.set_title(
        f"accuracy in percent after {chosen.rounds} rounds, {chosen.attackers} of {chosen.clients} clients attack",
        fontsize="medium",
        loc="right",
    )
    figure.colorbar(image, ax=axes, shrink=0.9, pad=0.02)
    try:
        figure.savefig(path, dpi=150)
    except ValueError as error:
        raise NothingToPlot(f"{path}: cannot be drawn: {error}") from error
