"""`flcore show`: a run from its directory, while it goes on or later; or a job of a federation."""

import json
import re
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
from flcore.cli.show_job import show_job
from flcore.errors import JobError, ProfileError
from flcore.federation.messages import JOB_ID_PATTERN
from flcore.server.results_file import RESULTS_FILE
from flcore.server.round_table import failure_lines, round_table
from flcore.server.run_directory import RUN_FILE
from flcore.server.run_summary import ModelFile, RunStatus, RunSummary, read_run
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

    A run: its state, a table of its rounds, who failed in them and why, and its models. The command only reads, also
    while a server runs. A run is running, finished, failed, aborted, stopped, interrupted (by an error of the disk), or
    unfinished, if its audit log has no end.

    A job: its state and the reason, its contract and pack, its sites and how far each is.
    """
    # `flcore download ID` makes a directory of the same name, which is none of a run.
    if not (Path(run) / RUN_FILE).exists() and re.fullmatch(JOB_ID_PATTERN, run):
        try:
            with open_federation(profile, kit, server, insecure) as federation:
                show_job(federation, run, as_json)
        except ProfileError as error:
            raise ProfileError(f"{run} is no run's directory; as the id of a job: {error}") from error
        return
    if not Path(run).is_dir():
        shown = printable(run, 200)
        raise JobError(f"expected the directory of a run, or the id of a job such as digits-12, got {shown}")
    summary = read_run(Path(run))
    if as_json:
        print(json.dumps(asdict(summary)))
        return
    parts = (_describe(summary), round_table(summary.history), failure_lines(summary.history), _models(summary))
    print("\n\n".join("\n".join(lines) for part in parts if (lines := list(part))))
    if (Path(run) / RESULTS_FILE).exists():
        print(f"results      {RESULTS_FILE}")


def _describe(summary: RunSummary) -> Iterator[str]:
    state = str(summary.state)
    if summary.state is RunStatus.RUNNING:
        state += f": {summary.owner}"
    elif summary.state is not RunStatus.FINISHED:
        state += f": {summary.reason}"
    yield f"run          {summary.id}"
    yield f"job          {summary.job}, contract {summary.fingerprint}"
    yield f"started      {summary.started}"
    yield f"state        {state}"


def _models(summary: RunSummary) -> Iterator[str]:
    named = [("model", summary.model)]
    named += [] if summary.best is None else [("best", summary.best)]
    named += [("checkpoint", each) for each in summary.checkpoints]
    width = max(len(printable(each.file)) for _, each in named)
    for kind, each in named:
        yield f"{kind:<11}  {printable(each.file):<{width}}  {_described(each)}"


def _described(model: ModelFile) -> str:
    size = "not there" if model.bytes is None else f"{model.bytes / 1e6:,.1f} MB"
    return size if model.round is None else f"{size}, round {model.round}"
