"""The metrics of several runs in one figure. Needs matplotlib."""

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from flcore.errors import HistoryError
from flcore.number_text import metric_text
from flcore.reports.comparison import Comparison, metric_title, shared_metrics
from flcore.reports.figure_panels import PanelLine, draw_lines, label_ends, prepare
from flcore.reports.palette import GREY, SERIES
from flcore.reports.series import metric_points
from flcore.text import printable

MAX_PANELS = 8
PANEL_WIDTH, PANEL_HEIGHT, HEAD_HEIGHT = 9.0, 2.6, 0.6


def draw_comparison(comparison: Comparison) -> Figure:
    """Draw a panel for each metric that at least two runs have.

    Raises:
        HistoryError: No two runs have a metric in common.
    """
    metrics = shared_metrics(comparison.runs)[:MAX_PANELS]
    if not metrics:
        raise HistoryError(
            f"expected a metric that two of the runs have, got none in {', '.join(comparison.labels)}; "
            "the table (--out FILE.html) compares what they have in common"
        )
    figure = Figure(figsize=(PANEL_WIDTH, PANEL_HEIGHT * len(metrics) + HEAD_HEIGHT), layout="constrained")
    FigureCanvasAgg(figure)
    jobs = ", ".join(dict.fromkeys(printable(run.job, 40) for run in comparison.runs)).replace("$", r"\$")
    figure.suptitle(f"{len(comparison.runs)} runs of {jobs}", x=0.012, ha="left", fontsize=10.5, color=GREY)
    for axes, (kind, name) in zip(figure.subplots(len(metrics), 1, squeeze=False)[:, 0], metrics, strict=True):
        _draw(axes, comparison, kind, name)
    return figure


def _draw(axes: Axes, comparison: Comparison, kind: str, name: str) -> None:
    lines = [
        PanelLine(label, points, SERIES[index % len(SERIES)])
        for index, (label, run) in enumerate(zip(comparison.labels, comparison.runs, strict=True))
        if (points := metric_points(run.history, kind, name))
    ]
    records = [record for run in comparison.runs for record in run.history]
    in_order = sorted(records, key=lambda record: record.round)
    prepare(axes, in_order, metric_title(kind, name))
    draw_lines(axes, lines)
    label_ends(
        axes,
        [
            (line.points[-1][1], f"{printable(line.label, 64)} {metric_text(line.points[-1][1])}", line.colour)
            for line in lines
        ],
    )
