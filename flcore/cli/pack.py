"""`flcore job pack`: a job in one file."""

from pathlib import Path
from typing import Annotated

import typer

from flcore.cli.completion import job_names
from flcore.identity.kit import load_signing_key
from flcore.job.code_check import check_code
from flcore.job.job import PACK_SUFFIX, Job
from flcore.job.pack import Packed, pack_job
from flcore.text import counted, printable

MAX_LINES = 40
"""The most lines about files that are left out: a directory of data may have thousands."""


def pack(
    job: Annotated[
        str,
        typer.Argument(help="A directory with job.toml, or the name of a bundled job.", autocompletion=job_names),
    ],
    out: Annotated[Path | None, typer.Option(help=f"The file. (default: NAME{PACK_SUFFIX} of the job's name)")] = None,
    sign: Annotated[
        Path | None,
        typer.Option(metavar="KIT", help="Directory of a lead's unpacked kit, whose key signs the pack."),
    ] = None,
) -> None:
    """Write a job into one file, and list what went in and what was left out. The same job gives the same bytes."""
    signer = None if sign is None else load_signing_key(sign)
    loaded = Job.load(job)
    check_code(loaded)
    packed = pack_job(loaded, out or Path(f"{loaded.contract.name}{PACK_SUFFIX}"), signer)
    for line in _describe(packed):
        print(line)
    by = "not signed" if signer is None else f"signed by {signer.name}"
    files = counted(len(packed.files), "file")
    print(f"{packed.path}: {files}, {packed.path.stat().st_size:,} bytes, {by}, SHA-256 {packed.digest}")


def _describe(packed: Packed) -> list[str]:
    lines = [f"packed    {file.name}, {file.nbytes:,} bytes" for file in packed.files]
    lines += [f"left out  {printable(entry.name)}: {entry.reason}" for entry in packed.left_out[:MAX_LINES]]
    if len(packed.left_out) > MAX_LINES:
        lines.append(f"left out  {len(packed.left_out) - MAX_LINES} more")
    return lines
