"""`flcore logs`: the log of a job, as far as it is written or to the job's end."""

import json
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Annotated

import typer

from flcore.cli.federation_options import (
    InsecureOption,
    JobIdArgument,
    JsonOption,
    KitOption,
    ProfileOption,
    ServerOption,
    open_federation,
    say,
)
from flcore.cli.following import explain_interrupt, goes_on
from flcore.text import printable

MAX_LINE_CHARACTERS = 10_000

SHARED = (
    'a site sends what share_logs in its site.toml allows: "errors", those of tasks that fail (the default), "all" or '
    '"none"'
)


def logs(
    id: JobIdArgument,  # noqa: A002 - its name
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Print new lines until the job is over.")] = False,
    client: Annotated[
        str,
        typer.Option(
            metavar="NAME", help="The log of this client, as far as its site shares it. (default: the server's)"
        ),
    ] = "",
    as_json: JsonOption = False,
    profile: ProfileOption = None,
    kit: KitOption = None,
    server: ServerOption = None,
    insecure: InsecureOption = False,
) -> None:
    """Print the log of a job, of the server or of a client. Ctrl-C ends the command and not the job."""
    with open_federation(profile, kit, server, insecure) as federation:
        job = federation.job(id)
        parts = job.follow_logs(client) if follow else iter([job.logs(client)])
        with explain_interrupt(goes_on(id)) if follow else nullcontext():
            if as_json:
                print(json.dumps({"id": id, "client": client, "log": "".join(parts)}))
                return
            count = 0
            for count, line in enumerate(_lines(parts), 1):  # noqa: B007 - counted
                print(printable(line, MAX_LINE_CHARACTERS), flush=follow)
    if client and not count:
        say(f"{id}: {printable(client, 64)} has sent no lines; {SHARED}")


def _lines(parts: Iterator[str]) -> Iterator[str]:
    """Yield the lines of a text that comes in parts; one without an end last."""
    rest = ""
    for part in parts:
        *lines, rest = (rest + part).split("\n")
        yield from lines
    if rest:
        yield rest
