"""`flcore report`: a run as one HTML file, from its directory."""

from pathlib import Path
from typing import Annotated

import typer

from flcore.cli.plot import RunArgument, require_suffix
from flcore.cli.run_argument import suggest_run
from flcore.reports.html_report import report_page, write_page
from flcore.reports.reported_run import read_reported_run, state_text
from flcore.text import printable

REPORT_PAGE = "report.html"


def report(
    run: RunArgument,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE.html", help="The file. (default: report.html in RUN)")
    ] = None,
) -> None:
    """Write a run's report: one HTML file that loads nothing else, for a browser or a printer.

    It shows what ran and how it ended, metrics, who took part in which round with which share, who was left out and
    why, times, bytes, models and digests.
    """
    path = run / REPORT_PAGE if out is None else out
    require_suffix(path, (".html",))
    with suggest_run(run):
        reported = read_reported_run(run)
    write_page(path, report_page(reported))
    print(f"report: {path} ({printable(state_text(reported), 200)}, {path.stat().st_size / 1e3:,.0f} kB)")
