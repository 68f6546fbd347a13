"""`flcore status`: a run, a job of a federation, or a federation, as it is now or live."""

import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from flcore.cli.federation_options import (
    InsecureOption,
    JsonOption,
    KitOption,
    ProfileOption,
    ServerOption,
    open_federation,
)
from flcore.cli.run_argument import suggest_run
from flcore.cli.status_live import show_changes, show_once
from flcore.errors import JobError, ProfileError
from flcore.federation.messages import JOB_ID_PATTERN
from flcore.server.run_directory import RUN_FILE
from flcore.status.job_status import JobStatus
from flcore.status.stored_status import read_status
from flcore.text import printable

REDRAW_S = 1.0
"""A run's file is read again after this time. Its server replaces it as often at most."""


def status(
    run: Annotated[
        str | None,
        typer.Argument(
            metavar="RUN|ID",
            help="The directory of a run (the one of --out, or runs/NAME), or the id of a job. (default: all jobs of "
            "the federation, and its sites)",
            show_default=False,
        ),
    ] = None,
    watch: Annotated[
        bool, typer.Option("--watch", help="Show it live, until the job is over or Ctrl-C. With --json: one line each.")
    ] = False,
    as_json: JsonOption = False,
    profile: ProfileOption = None,
    kit: KitOption = None,
    server: ServerOption = None,
    insecure: InsecureOption = False,
) -> None:
    """Show what happens now: the state, the clients and where each is in its task, bytes and rates, refusals, rounds.

    A run on this machine is read from its directory, also after its end. A job of a federation is asked for at its
    server: its lead and the admins see its clients. Without an argument: all jobs, and for admins the sites.
    """
    console = Console(highlight=False)
    with suggest_run(run):
        if run is not None and _is_directory_of_run(run):
            if watch:
                show_changes(_changes(Path(run)), console, as_json=as_json)
            else:
                show_once(read_status(Path(run)), console, as_json=as_json)
            return
        try:
            with open_federation(profile, kit, server, insecure) as federation:
                asked = federation if run is None else federation.job(run)
                if watch:
                    show_changes(asked.watch(), console, as_json=as_json)
                else:
                    show_once(asked.status, console, as_json=as_json)
        except ProfileError as error:
            if run is None:
                raise ProfileError(
                    f"{error}; for a run on this machine, give its directory: flcore status RUN"
                ) from error
            raise ProfileError(f"{run} is no run's directory; as the id of a job: {error}") from error


def _is_directory_of_run(run: str) -> bool:
    # `flcore download ID` makes a directory of the same name, which is none of a run.
    if (Path(run) / RUN_FILE).exists():
        return True
    if re.fullmatch(JOB_ID_PATTERN, run):
        return False
    if Path(run).is_dir():
        return True
    raise JobError(f"expected the directory of a run, or the id of a job such as digits-12, got {printable(run, 200)}")


def _changes(directory: Path) -> Iterator[JobStatus]:
    """Yield the status of a run once a second, until the run is over: times and rates change, too."""
    while True:
        found = read_status(directory)
        yield found
        if found.is_over:
            return
        time.sleep(REDRAW_S)
