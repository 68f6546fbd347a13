"""The status of a job or of a federation, live on a terminal or as lines of text."""

import json
from collections.abc import Iterable, Iterator, Sequence

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table as RichTable
from rich.text import Text

from flcore.cli.status_view import Table, federation_tables, job_heading, job_tables, plain_lines
from flcore.status.job_status import FederationStatus, JobStatus

STYLES = {
    "downloading": "cyan",
    "training": "yellow",
    "uploading": "blue",
    "checked": "green",
    "folded": "green",
    "done": "green",
    "refused": "bold red",
    "failed": "bold red",
    "lost": "bold red",
    "aborted": "red",
    "interrupted": "red",
    "stopped": "red",
}
"""The colours of states. Each is also a word, for terminals and readers without colours."""

REASON_WIDTH = 32
"""The least width of a column of reasons, which are wrapped. With less space, they stand below their table."""

AnyStatus = JobStatus | FederationStatus


def show_once(status: AnyStatus, console: Console, *, as_json: bool) -> None:
    """Print a status: with colours on a terminal, elsewhere as lines of text."""
    if as_json:
        print(json.dumps(status.to_json()))
    elif console.is_terminal:
        console.print(rendered(status, console.width))
    else:
        for line in plain_lines(*_parts(status)):
            print(line)


def show_changes(statuses: Iterable[AnyStatus], console: Console, *, as_json: bool) -> None:
    """Show each status in the place of the last one on a terminal; elsewhere one after the other."""
    if as_json or not console.is_terminal:
        for number, status in enumerate(statuses):
            if number and not as_json:
                print()
            show_once(status, console, as_json=as_json)
        return
    with Live(console=console, auto_refresh=False, transient=False) as live:
        for status in statuses:
            live.update(rendered(status, console.width), refresh=True)


def rendered(status: AnyStatus, width: int) -> RenderableType:
    """Return a status for a terminal of `width` columns."""
    heading, tables = _parts(status)
    return Group(*_heading(heading), *(_table(table, width) for table in tables))


def _parts(status: AnyStatus) -> tuple[Sequence[tuple[str, str]], Sequence[Table]]:
    if isinstance(status, FederationStatus):
        return (), list(federation_tables(status))
    return list(job_heading(status)), list(job_tables(status))


def _heading(lines: Sequence[tuple[str, str]]) -> Iterator[Text]:
    for name, value in lines:
        yield Text.assemble((f"{name:<9}", "bold"), _styled(value) if name == "state" else value)


def _table(table: Table, width: int) -> RenderableType:
    has_reasons = table.heading[-1] == "reason" and any(row[-1] for row in table.rows)
    others = table.heading[:-1] if table.heading[-1] == "reason" else table.heading
    widths = [max(len(row[column]) for row in (table.heading, *table.rows)) for column in range(len(others))]
    is_beside = has_reasons and sum(widths) + 2 * len(widths) + REASON_WIDTH <= width
    shown = RichTable(title=Text(f"\n{table.title}", "bold"), title_justify="left", box=None, pad_edge=False)
    for name in others:
        shown.add_column(name, no_wrap=True, overflow="ellipsis", header_style="dim")
    if is_beside:
        shown.add_column("reason", overflow="fold", header_style="dim")
    for row in table.rows:
        cells = zip(others, row, strict=False)
        styled = [_styled(cell) if name == "state" else Text(cell) for name, cell in cells]
        shown.add_row(*styled, *([Text(row[-1])] if is_beside else []))
    if not table.rows:
        return Group(shown, Text(f"no {table.title}"))
    below = [Text(f"{_row_name(table, row)}: {row[-1]}") for row in table.rows if row[-1]]
    return Group(shown, *below) if has_reasons and not is_beside else shown


def _row_name(table: Table, row: Sequence[str]) -> str:
    """Return what a row is about: its first cell, and for a round or a refusal what it is."""
    first = table.heading[0]
    return f"{first} {row[0]}" if first == "round" else row[table.heading.index("client")] if first == "at" else row[0]


def _styled(cell: str) -> Text:
    return Text(cell, STYLES.get(cell.partition(" ")[0].rstrip(",:"), ""))
