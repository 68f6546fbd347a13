"""`flcore download`: the files of a job, checked, into a directory."""

import json
from collections import Counter
from pathlib import Path
from typing import Annotated

import typer

from flcore.cli.federation_options import (
    InsecureOption,
    JobIdArgument,
    JsonOption,
    KitOption,
    ProfileOption,
    ServerOption,
    console,
    open_federation,
)
from flcore.cli.following import explain_interrupt
from flcore.cli.transfer_progress import show_transfer
from flcore.number_text import bytes_text
from flcore.text import printable

INCOMPLETE = "interrupted: the same command resumes the download"


def download(
    id: JobIdArgument,  # noqa: A002 - its name
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Directory for the files. (default: ID)")] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace files there that have another content, and say which.")
    ] = False,
    as_json: JsonOption = False,
    profile: ProfileOption = None,
    kit: KitOption = None,
    server: ServerOption = None,
    insecure: InsecureOption = False,
) -> None:
    """Download a job's models, history and logs, and write report.txt. The same command resumes an interrupted one.

    Each file is checked by its SHA-256 before it gets its name. Until then it is NAME.partial.
    """
    directory = Path(id) if out is None else out
    with open_federation(profile, kit, server, insecure) as federation:
        job = federation.job(id)  # before a directory is made for an id that does not exist
        with explain_interrupt(INCOMPLETE), show_transfer("received", console()) as observe:
            files = job.download(directory, overwrite=overwrite, observe=observe)
    if as_json:
        listed = [
            {"name": each.name, "bytes": each.nbytes, "sha256": each.sha256, "change": each.change} for each in files
        ]
        print(json.dumps({"id": id, "directory": str(directory), "files": listed}))
        return
    for each in files:
        if each.change == "replaced":
            print(f"replaced {printable(str(each.path))}")
    counts = Counter(each.change for each in files)
    shown = ", ".join(f"{count} {change}" for change, count in counts.items()) or "no files yet"
    print(f"{directory}: {shown}, {bytes_text(sum(each.nbytes for each in files))}, and report.txt")
