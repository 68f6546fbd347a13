"""The options that all commands of a lead share, and the connection that they describe."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flcore.lead.connection import FederationConnection, connect
from flcore.process import exit_on_sigterm

if TYPE_CHECKING:
    from rich.console import Console

JobIdArgument = Annotated[str, typer.Argument(metavar="ID", help="The job's id, such as digits-12.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]
ProfileOption = Annotated[
    str | None,
    typer.Option("--profile", metavar="NAME", help="Profile that flcore login has written. (default: default)"),
]
KitOption = Annotated[
    Path | None, typer.Option("--kit", metavar="DIR", help="Directory of an unpacked kit, instead of a profile.")
]
ServerOption = Annotated[
    str | None,
    typer.Option("--server", metavar="HOST:PORT", help="The server's address. (default: the profile's or the kit's)"),
]
InsecureOption = Annotated[
    bool, typer.Option("--insecure", help="Plaintext without TLS, to a server on this machine only.")
]


def console() -> "Console":
    """Return the console on standard error, where news go: standard output has results alone."""
    from rich.console import Console  # most commands have no news

    return Console(stderr=True, highlight=False, markup=False, soft_wrap=True)


def say(line: str) -> None:
    """Write a line of news."""
    console().print(line)


@contextmanager
def open_federation(
    profile: str | None, kit: Path | None, server: str | None, insecure: bool
) -> Iterator[FederationConnection]:
    """Connect to the federation that a command's options describe, while the block lasts."""
    if insecure and (server is None or kit is not None or profile is not None):
        raise typer.BadParameter("it goes with --server, without --kit and --profile", param_hint="--insecure")
    if profile is not None and kit is not None:
        raise typer.BadParameter("give a profile or a kit", param_hint="--kit")
    exit_on_sigterm()  # also sends Ctrl-C again that came within a finalizer, where Python drops it
    with connect(profile, kit=kit, server=server, insecure=insecure, notify=say) as federation:
        yield federation
