"""`flcore compare`: several runs side by side."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from flcore.cli.completion import run_directories
from flcore.cli.federation_options import JsonOption
from flcore.cli.plot import SUFFIXES, require_matplotlib, require_suffix
from flcore.cli.run_argument import suggest_run
from flcore.reports.comparison import Comparison, compare_runs
from flcore.reports.comparison_page import comparison_page
from flcore.reports.html_report import write_page
from flcore.reports.reported_run import read_reported_run
from flcore.strict_json import dump_json
from flcore.text import printable

MAX_CELL_CHARACTERS = 60


def compare(
    runs: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN RUN...",
            help="The directories of two runs or more, or of downloads.",
            autocompletion=run_directories,
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write .html (table and charts), or .png, .svg or .pdf (metrics), instead."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Compare runs: state, metrics, rounds, bytes, seconds, last models, and what their contracts differ in.

    Runs of different jobs are compared as far as they have something in common.
    """
    if len(runs) < 2:
        raise typer.BadParameter("expected two runs or more, got one; `flcore show RUN` shows one", param_hint="RUN")
    if out is not None:
        require_suffix(out, (".html", *SUFFIXES))
    with suggest_run(*runs):
        reported = [read_reported_run(run) for run in runs]
    comparison = compare_runs(reported)
    if out is not None:
        _write(comparison, out)
    if as_json:
        print(dump_json(comparison.to_json()))
    elif out is not None:
        print(f"comparison: {out}")
    else:
        _print(comparison)


def _write(comparison: Comparison, out: Path) -> None:
    if out.suffix.lower() == ".html":
        write_page(out, comparison_page(comparison))
        return
    require_matplotlib()
    from flcore.reports.comparison_figure import draw_comparison
    from flcore.reports.figures import save_figure

    save_figure(draw_comparison(comparison), out)


def _print(comparison: Comparison) -> None:
    console = Console(highlight=False, markup=False)
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("", no_wrap=True)
    for label in comparison.labels:
        table.add_column(Text(printable(label, MAX_CELL_CHARACTERS)), justify="right", overflow="fold")
    group = comparison.rows[0].group
    for row in comparison.rows:
        if row.group != group:
            table.add_row("")
            group = row.group
        cells = [Text(printable(cell, MAX_CELL_CHARACTERS)) for cell in row.cells]
        table.add_row(Text(printable(row.name, MAX_CELL_CHARACTERS)), *cells, style="bold" if row.differs else "")
    console.print(table)
    for note in comparison.notes:
        console.print(Text(printable(note, 1_000)))
