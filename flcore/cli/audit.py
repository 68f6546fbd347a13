"""`flcore audit verify`: whether a run's audit log is whole and unchanged."""

import json
import re
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from flcore.cli.completion import run_directories
from flcore.server.audit_chain import AUDIT_FILE, Fault, Verification
from flcore.server.audit_chain import verify as verify_log


def verify(
    run: Annotated[
        Path, typer.Argument(help=f"The directory of a run, or its {AUDIT_FILE}.", autocompletion=run_directories)
    ],
    head: Annotated[
        str | None,
        typer.Option(
            metavar="DIGEST",
            help="A head that an earlier verification printed. The log must have that entry; entries may follow it.",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Verify the hash chain of a run's audit log, and print its head. Exit code 1 if it does not hold.

    Entries that were cut off at the end are noticed only with --head.
    """
    if head is not None and not re.fullmatch("[0-9a-f]{64}", head):
        raise typer.BadParameter(f"expected 64 hexadecimal digits, got {head[:80]!r}", param_hint="--head")
    path = run / AUDIT_FILE if run.is_dir() or run.name != AUDIT_FILE else run
    result = verify_log(path, head)
    if as_json:
        print(json.dumps({"path": str(path), **asdict(result)}))
    elif result.fault is None:
        print(_describe(path, result))
    else:
        print(_describe_fault(path, result, result.fault))
    if result.fault is not None:
        raise typer.Exit(1)


def _describe(path: Path, result: Verification) -> str:
    parts = [f"{result.entries:,} entries from {result.first} to {result.last}, the chain holds"]
    if result.entries_after_head is not None:
        parts.append(f"{result.entries_after_head:,} entries after the given head")
    if result.torn_tails:
        parts.append(f"{result.torn_tails} torn lines of earlier crashes, recorded")
    if result.torn_bytes:
        parts.append(f"a torn last line of {result.torn_bytes} bytes, as a crash leaves it")
    if not result.has_ended:
        parts.append("no end: the server runs or was killed, or the end was cut off")
    return f"{path}: {'; '.join(parts)}; head {result.head}"


def _describe_fault(path: Path, result: Verification, fault: Fault) -> str:
    return (
        f"{path}, line {fault.line}: expected {fault.expected}, got {fault.got}; "
        f"the {result.entries:,} entries before it form a chain with head {result.head}"
    )
