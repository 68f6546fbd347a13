"""The parts of a report with charts: metrics, sites, seconds and bytes."""

from collections.abc import Sequence
from statistics import median

from flcore.number_text import BYTE_UNITS, byte_unit, bytes_text, metric_text, seconds_format, share_text
from flcore.reports.html_page import Column, paragraph, section, table
from flcore.reports.reported_run import ReportedRun
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
from flcore.reports.svg_charts import ChartLine, line_chart, stacked_chart
from flcore.text import counted, printable

MAX_CHARTS = 12
MAX_SITE_LINES = 6
"""With more sites, a chart shows their median, their range, and the sites that are far from the others."""

MAX_COLUMNS = 60
MAX_MARKED = 100


def metric_section(run: ReportedRun) -> str:
    """Return a chart of each metric by round, with training and validation in one."""
    names = metric_names(run.history)
    charts = [_metric_chart(run, name) for name in names[:MAX_CHARTS]]
    return section(
        "Metrics", _charts(charts), _more(len(names) - MAX_CHARTS, "metrics"), _skip_note(run) if charts else ""
    )


def site_section(run: ReportedRun) -> str:
    """Return a chart of each training metric by site, and of the sites' seconds."""
    found = site_series(run.history)
    charts = [_site_chart(run, series) for series in [*found[: MAX_CHARTS - 1], *found[MAX_CHARTS - 1 :][-1:]]]
    named = sorted({name for series in found for name in series.outliers})
    note = ""
    if found and len(found[0].by_site) > MAX_SITE_LINES:
        far = ", ".join(printable(name, 64) for name in named[:10]) or "none"
        note = f"The band is the range of the sites, without those that are far from the others: {far}."
    return section(
        "Sites", _charts(charts), _more(len(found) - MAX_CHARTS, "metrics"), note and paragraph(note, "muted")
    )


def time_section(run: ReportedRun) -> str:
    """Return the seconds of each phase, as a chart and as a table."""
    phases = phase_seconds(run.history)
    if not phases:
        return ""
    size = bin_size(len(run.history), MAX_COLUMNS)
    columns = {name: binned(values, MAX_COLUMNS) for name, values in phases.items()}
    title = "seconds per phase" + (f", means of {size} rounds" if size > 1 else "")
    numbers = [record.round for record in run.history][::size]
    styles = ["c7" if name == REST else f"c{index % 7}" for index, name in enumerate(columns)]
    parts = {printable(name, 40): (style, columns[name]) for name, style in zip(columns, styles, strict=True)}
    chart = stacked_chart(title, parts, numbers)
    whole = round_seconds(run.history)
    total_of = seconds_format(sum(values) for values in [*phases.values(), whole])
    time_of = seconds_format(max(values) for values in [*phases.values(), whole])
    rows = [
        [
            printable(name, 40),
            total_of(sum(values)),
            _share(values, whole),
            time_of(median(values)),
            time_of(max(values)),
        ]
        for name, values in [*phases.items(), ("whole round", whole)]
    ]
    heads = ["Total", "Share", "Median", "Longest"]
    phase_table = table("Seconds per phase", [Column("Phase"), *(Column(head, is_number=True) for head in heads)], rows)
    return section("Time", _charts([chart, f"<div>{phase_table}</div>"]))


def _share(values: Sequence[float], whole: Sequence[float]) -> str:
    return share_text(sum(values) / sum(whole)) if sum(whole) else "\u2013"


def byte_section(run: ReportedRun) -> str:
    """Return bytes by round, as a chart and as a table."""
    sent = [record.bytes_sent for record in run.history]
    received = [record.bytes_received for record in run.history]
    if not any(sent) and not any(received):
        return ""
    unit = byte_unit(max(*sent, *received))
    scale = 1000 ** BYTE_UNITS.index(unit)
    numbers = [record.round for record in run.history]
    lines = [
        ChartLine(label, [(number, each / scale) for number, each in zip(numbers, values, strict=True)], style)
        for label, values, style in (("sent", sent, "c0"), ("received", received, "c1"))
    ]
    chart = line_chart(f"{unit} per round", lines, _rounds(run), unit=unit)
    rows = [_byte_row("Sent to clients", sent), _byte_row("Received from clients", received)]
    columns = [
        Column("Direction"),
        *(Column(head, is_number=True) for head in ("Total", "Median per round", "Largest")),
    ]
    return section("Bytes", _charts([chart, f"<div>{table('Bytes of the server', columns, rows)}</div>"]))


def _byte_row(name: str, values: Sequence[int]) -> list[str]:
    return [name, bytes_text(sum(values)), bytes_text(median(values)), bytes_text(max(values))]


def _metric_chart(run: ReportedRun, name: str) -> str:
    kinds = (("validate", "validation", "c0"), ("train", "training", "c1"))
    found = [(label, metric_points(run.history, kind, name), style) for kind, label, style in kinds]
    lines = [
        ChartLine(f"{label} {metric_text(points[-1][1])}", points, style) for label, points, style in found if points
    ]
    if not lines:
        return ""
    dot, shown = None, printable(name, 60)
    if run.best_metric is not None and run.best_metric[0] == name:
        best = next((each for each in reversed(run.history) if each.is_best and name in each.validate), None)
        if best is not None:
            dot, shown = (
                (best.round, best.validate[name]),
                f"{shown}, best {metric_text(best.validate[name])} in round {best.round}",
            )
    skipped = [record.round for record in run.history if record.skipped][:MAX_MARKED]
    return line_chart(shown, lines, _rounds(run), marked=skipped, dot=dot)


def _site_chart(run: ReportedRun, series: SiteSeries) -> str:
    is_time = series.name == "seconds"
    title, unit = ("seconds until the answer", "s") if is_time else (printable(series.name, 60), "")
    names = list(series.by_site)
    if len(names) <= MAX_SITE_LINES:
        lines = [ChartLine(printable(name, 64), series.by_site[name], f"c{index}") for index, name in enumerate(names)]
        return line_chart(title, lines, _rounds(run), unit=unit)
    middle = ChartLine(f"median of {len(names)}", [(each.round, each.median) for each in series.spread], "c0")
    far = [
        ChartLine(printable(name, 64), series.by_site[name], f"c{index}")
        for index, name in enumerate(series.outliers, 1)
    ]
    return line_chart(title, [*far, middle], _rounds(run), band=series.spread_without(series.outliers), unit=unit)


def _rounds(run: ReportedRun) -> tuple[int, int]:
    return run.history[0].round, run.history[-1].round


def _charts(charts: Sequence[str]) -> str:
    return f'<div class="charts">{"".join(charts)}</div>' if any(charts) else ""


def _more(count: int, what: str) -> str:
    return paragraph(f"{count} more {what} are left out; history.jsonl has them.", "muted") if count > 0 else ""


def _skip_note(run: ReportedRun) -> str:
    count = sum(bool(record.skipped) for record in run.history)
    return (
        paragraph(f"Dotted lines mark {counted(count, 'round')} that left the model unchanged.", "muted")
        if count
        else ""
    )
