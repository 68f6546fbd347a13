"""`flcore submit` and `flcore clone`: a job into the queue of a federation, and followed to its end."""

import json
from typing import Annotated

import typer

from flcore.cli.completion import job_names
from flcore.cli.federation_options import (
    InsecureOption,
    JobIdArgument,
    JsonOption,
    KitOption,
    ProfileOption,
    ServerOption,
    console,
    open_federation,
    say,
)
from flcore.cli.following import explain_interrupt, goes_on
from flcore.cli.transfer_progress import show_transfer
from flcore.federation.messages import JobSummary
from flcore.job.changes import parse_change
from flcore.lead.job_sheet import news_line
from flcore.lead.submitted_job import SubmittedJob, require_done

SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Replace a key of the contract: server.rounds=20; repeatable."),
]
WaitOption = Annotated[
    bool, typer.Option("--wait", help="Follow the job to its end. Exit code 1 if it fails or is aborted.")
]

NOT_QUEUED = "interrupted before the job had an id: the same command resumes the upload; first see `flcore list`"


def submit(
    job: Annotated[
        str,
        typer.Argument(help="A directory with job.toml, a bundled job (digits), or a pack.", autocompletion=job_names),
    ],
    changes: SetOption = None,
    sign: Annotated[bool, typer.Option("--sign", help="Sign the pack with the key of the kit.")] = False,
    wait: WaitOption = False,
    as_json: JsonOption = False,
    profile: ProfileOption = None,
    kit: KitOption = None,
    server: ServerOption = None,
    insecure: InsecureOption = False,
) -> None:
    """Send a job to the federation, and print its id. An upload that was interrupted is resumed by the same command."""
    parsed = dict(map(parse_change, changes or ()))
    with open_federation(profile, kit, server, insecure) as federation:
        with explain_interrupt(NOT_QUEUED), show_transfer("sent", console()) as observe:
            submitted = federation.submit(job, parsed, sign=sign, observe=observe)
        _print_queued(submitted, wait, as_json)


def clone(
    id: JobIdArgument,  # noqa: A002 - its name
    changes: SetOption = None,
    wait: WaitOption = False,
    as_json: JsonOption = False,
    profile: ProfileOption = None,
    kit: KitOption = None,
    server: ServerOption = None,
    insecure: InsecureOption = False,
) -> None:
    """Submit a job of the federation again, with changed keys of its contract, and print the new id."""
    parsed = dict(map(parse_change, changes or ()))
    with open_federation(profile, kit, server, insecure) as federation:
        _print_queued(federation.clone(id, parsed), wait, as_json)


def _print_queued(job: SubmittedJob, wait: bool, as_json: bool) -> None:
    if not as_json:
        print(job.id, flush=True)
    summary = _follow(job) if wait else None
    if as_json:
        print(json.dumps({"id": job.id} if summary is None else {"id": job.id, "job": summary.model_dump()}))
    if summary is not None:
        require_done(summary)


def _follow(job: SubmittedJob) -> JobSummary:
    """Say each state and round of a job until it is over."""
    with explain_interrupt(goes_on(job.id)):
        for summary in job.follow():
            say(news_line(summary))
    return summary
