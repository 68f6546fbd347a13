"""`flcore list`: the jobs of a federation as a table."""

import json
import sys
from collections.abc import Iterator, Sequence
from shutil import get_terminal_size
from typing import Annotated, get_args

import typer

from flcore.cli.federation_options import (
    InsecureOption,
    JsonOption,
    KitOption,
    ProfileOption,
    ServerOption,
    open_federation,
)
from flcore.federation.messages import JobState, JobSummary
from flcore.text import printable

TABLE_CHARACTERS = 100
"""The width of the table, of a terminal that is not wider. Elsewhere nothing is cut."""
HEADING = ("id", "name", "state", "rounds", "lead", "submitted", "reason")
CUTS = (("reason", 20), ("name", 8), ("lead", 8), ("reason", 8), ("id", 24))
"""The columns that are cut if the table is too wide, and how far: ids last, as they are copied. `--json` cuts none."""


def list_jobs(
    state: Annotated[
        list[str] | None,
        typer.Option(metavar="STATE", help=f"Only jobs in this state ({', '.join(get_args(JobState))}); repeatable."),
    ] = None,
    limit: Annotated[int, typer.Option(min=1, max=1_000, help="The most jobs, the newest first.")] = 100,
    as_json: JsonOption = False,
    profile: ProfileOption = None,
    kit: KitOption = None,
    server: ServerOption = None,
    insecure: InsecureOption = False,
) -> None:
    """List the jobs of the federation, the newest first. Times are in UTC."""
    states = state or []
    for each in states:
        if each not in get_args(JobState):
            raise typer.BadParameter(
                f"expected one of {', '.join(get_args(JobState))}, got {printable(each, 40)!r}", param_hint="--state"
            )
    with open_federation(profile, kit, server, insecure) as federation:
        jobs = federation.jobs(states, limit)  # type: ignore[arg-type]  # checked above
    if as_json:
        print(json.dumps({"jobs": [job.model_dump() for job in jobs]}))
        return
    width = max(TABLE_CHARACTERS, get_terminal_size().columns) if sys.stdout.isatty() else None
    for line in job_table(jobs, width):
        print(line)


def job_table(jobs: Sequence[JobSummary], width: int | None = TABLE_CHARACTERS) -> Iterator[str]:
    """Yield a heading and a line for each job, at most `width` characters wide.

    >>> list(job_table([]))
    ['no jobs']
    """
    if not jobs:
        yield "no jobs"
        return
    rows = [HEADING, *(_cells(job) for job in jobs)]
    widths = dict(zip(HEADING, (max(map(len, column)) for column in zip(*rows, strict=True)), strict=True))
    excess = 0 if width is None else sum(widths.values()) + 2 * (len(HEADING) - 1) - width
    for name, least in CUTS:
        cut = max(0, min(excess, widths[name] - least))
        widths[name] -= cut
        excess -= cut
    for row in rows:
        cells = (printable(cell, most).ljust(most) for cell, most in zip(row, widths.values(), strict=True))
        yield "  ".join(cells).rstrip()


def _cells(job: JobSummary) -> tuple[str, ...]:
    rounds = f"{job.round}/{job.rounds}"
    submitted = job.submitted[:16].replace("T", " ")
    return tuple(map(printable, (job.id, job.name, job.state, rounds, job.lead, submitted, job.reason)))
