"""`flcore status`: a run, a job of a federation, or a federation, as it is now or live."""

from collections.abc import Iterator
from contextlib import contextmanager
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
from flcore.cli.run_argument import is_directory_of_run, suggest_run, taken_as_job_id
from flcore.cli.status_live import show_changes, show_once
from flcore.errors import ProfileError
from flcore.status.stored_status import read_status, watch_status


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
        if run is not None and is_directory_of_run(run):
            if watch:
                show_changes(watch_status(Path(run)), console, as_json=as_json)
            else:
                show_once(read_status(Path(run)), console, as_json=as_json)
            return
        with (
            _taken_as_federation() if run is None else taken_as_job_id(run),
            open_federation(profile, kit, server, insecure) as federation,
        ):
            asked = federation if run is None else federation.job(run)
            if watch:
                show_changes(asked.watch(), console, as_json=as_json)
            else:
                show_once(asked.status, console, as_json=as_json)


@contextmanager
def _taken_as_federation() -> Iterator[None]:
    try:
        yield
    except ProfileError as error:
        raise ProfileError(f"{error}; for a run on this machine, give its directory: flcore status RUN") from error
