"""`flcore show`: a run from its directory, while it goes on or later; or a job of a federation."""

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from flcore.cli.completion import run_directories
from flcore.cli.federation_options import (
    InsecureOption,
    JsonOption,
    KitOption,
    ProfileOption,
    ServerOption,
    open_federation,
)
from flcore.cli.run_argument import is_directory_of_run, suggest_run, taken_as_job_id
from flcore.cli.show_job import show_job
from flcore.number_text import bytes_text
from flcore.server.results_file import RESULTS_FILE
from flcore.server.round_table import failure_lines, round_table
from flcore.server.run_summary import ModelFile, RunSummary, read_run
from flcore.strict_json import dump_json
from flcore.text import printable


def show(
    run: Annotated[
        str,
        typer.Argument(
            metavar="RUN|ID",
            help="The directory of a run (the one of --out, or runs/NAME), or the id of a job.",
            autocompletion=run_directories,
        ),
    ],
    as_json: JsonOption = False,
    profile: ProfileOption = None,
    kit: KitOption = None,
    server: ServerOption = None,
    insecure: InsecureOption = False,
) -> None:
    """Show a run from its directory, or a job of a federation by its id.

    A run: its state, a table of its rounds, who was left out of them and why, and its models. The command only reads,
    also while a server runs. A run that is stopped or interrupted goes on when its server is started again.

    A job: its state and the reason, its contract and pack, its sites and how far each is.
    """
    with suggest_run(run):
        if not is_directory_of_run(run):
            with taken_as_job_id(run), open_federation(profile, kit, server, insecure) as federation:
                show_job(federation, run, as_json)
            return
        summary = read_run(Path(run))
        if as_json:
            print(dump_json(asdict(summary)))
            return
        history = summary.history
        parts = (_describe(summary), round_table(history), failure_lines(history), _models(summary))
        print("\n\n".join("\n".join(lines) for part in parts if (lines := [*part])))
        if (Path(run) / RESULTS_FILE).exists():
            print(f"results      {RESULTS_FILE}")


def _describe(summary: RunSummary) -> Iterator[str]:
    reason = summary.owner or summary.reason
    yield f"run          {summary.id}"
    yield f"job          {summary.job}, contract {summary.fingerprint}"
    yield f"started      {summary.started}"
    yield f"state        {summary.state}{f': {reason}' if reason else ''}"


def _models(summary: RunSummary) -> Iterator[str]:
    named = [("model", summary.model)]
    named += [] if summary.best is None else [("best", summary.best)]
    named += [("checkpoint", each) for each in summary.checkpoints]
    width = max(len(printable(each.file)) for _, each in named)
    for kind, each in named:
        yield f"{kind:<11}  {printable(each.file):<{width}}  {_described(each)}"


def _described(model: ModelFile) -> str:
    size = "not there" if model.bytes is None else bytes_text(model.bytes)
    return size if model.round is None else f"{size}, round {model.round}"
