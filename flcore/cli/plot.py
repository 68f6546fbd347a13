"""`flcore plot`: figures of a run, from its directory."""

from enum import StrEnum
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from flcore.cli.completion import run_directories
from flcore.cli.run_argument import suggest_run
from flcore.errors import HistoryError
from flcore.reports.reported_run import read_reported_run

PLOT_FILE = "plot.png"
SUFFIXES = (".png", ".svg", ".pdf")
RunArgument = Annotated[
    Path,
    typer.Argument(
        metavar="RUN",
        help="The directory of a run (the one of --out, or runs/NAME) or of a download.",
        autocompletion=run_directories,
    ),
]


class What(StrEnum):
    """What is drawn."""

    ALL = "all"
    METRICS = "metrics"
    SITES = "sites"
    PHASES = "phases"
    BYTES = "bytes"


def plot(
    run: RunArgument,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A .png, .svg or .pdf file. (default: plot.png in RUN)")
    ] = None,
    what: Annotated[
        What,
        typer.Option(
            help="metrics: by round. sites: training metrics and seconds by site. phases: seconds per phase. "
            "bytes: sent and received."
        ),
    ] = What.ALL,
) -> None:
    """Draw a run: metrics by round and by site, seconds per phase, bytes. Needs matplotlib (flcore's extra plot).

    Of more than 8 sites, the figure shows median and range, and names the sites that are far from the others.
    """
    path = run / PLOT_FILE if out is None else out
    require_suffix(path, SUFFIXES)
    require_matplotlib()
    from flcore.reports.figures import draw_run, save_figure

    chosen = [each.value for each in What if each is not What.ALL] if what is What.ALL else [what.value]
    with suggest_run(run):
        reported = read_reported_run(run)
    save_figure(draw_run(reported, chosen), path)
    print(f"plot: {path}")


def require_suffix(path: Path, suffixes: tuple[str, ...]) -> None:
    """Raise an error of usage if a file does not end as it must."""
    if path.suffix.lower() not in suffixes:
        expected = " or ".join(f"FILE{suffix}" for suffix in suffixes)
        raise typer.BadParameter(f"expected {expected}, got {path.name!r}", param_hint="--out")


def require_matplotlib() -> None:
    """Raise an error if matplotlib is not installed."""
    if find_spec("matplotlib") is None:
        raise HistoryError(
            "expected matplotlib for a figure, got none: install flcore's extra plot (pip install 'flcore[plot]'); "
            "`flcore report RUN` needs none"
        )
