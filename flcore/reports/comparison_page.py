"""A comparison of runs as one self-contained HTML file."""

from flcore.reports.comparison import Comparison, metric_title, shared_metrics
from flcore.reports.html_page import Column, grouped_table, page, paragraph, section, text
from flcore.reports.reported_run import ReportedRun
from flcore.reports.series import metric_points
from flcore.reports.svg_charts import ChartLine, line_chart
from flcore.text import printable, utc_time
from flcore.version import __version__

MAX_CHARTS, MAX_RUNS_DRAWN = 8, 7
"""A chart has a colour for each of so many runs. The tables have all."""

GROUPS = {
    "run": "Run",
    "metrics": "Metrics",
    "cost": "Bytes and time",
    "model": "Last model",
    "contract": "What the contracts differ in",
}


def comparison_page(comparison: Comparison) -> str:
    """Return a comparison as HTML. It has a chart of each common metric, and one table."""
    runs = [printable(label, 60) for label in comparison.labels]
    head = f"<header><h1>{text(f'{len(runs)} runs compared')}</h1></header>"
    notes = "".join(paragraph(note) for note in comparison.notes)
    charts = "".join(_chart(comparison, kind, name) for kind, name in shared_metrics(comparison.runs)[:MAX_CHARTS])
    drawn = f'<div class="charts">{charts}</div>' if charts else ""
    more = len(runs) - MAX_RUNS_DRAWN
    note = paragraph(f"The charts show the first {MAX_RUNS_DRAWN} runs.", "muted") if charts and more > 0 else ""
    footer = f"<footer>Made by flcore {text(__version__)} on {utc_time()}. Bytes are in powers of 1000.</footer>"
    metrics = section("Metrics by round", drawn, note)
    return page(
        f"{len(runs)} runs compared", head + notes, metrics, section("Side by side", _table(comparison)), footer
    )


def _table(comparison: Comparison) -> str:
    groups = {title: [row for row in comparison.rows if row.group == group] for group, title in GROUPS.items()}
    columns = [Column("What"), *(Column(label) for label in comparison.labels)]
    rows = {title: [[row.name, *row.cells] for row in found] for title, found in groups.items() if found}
    return grouped_table("Runs side by side", columns, rows, "compare wrap said-above")


def _chart(comparison: Comparison, kind: str, name: str) -> str:
    drawn = list(zip(comparison.labels, comparison.runs, strict=True))[:MAX_RUNS_DRAWN]
    lines = [
        ChartLine(printable(label, 64), points, f"c{index}")
        for index, (label, run) in enumerate(drawn)
        if (points := metric_points(run.history, kind, name))
    ]
    if not lines:
        return ""
    title = metric_title(kind, name)
    return line_chart(title, lines, _rounds([run for _, run in drawn]))


def _rounds(runs: list[ReportedRun]) -> tuple[int, int]:
    numbers = [record.round for run in runs for record in run.history]
    return min(numbers), max(numbers)
