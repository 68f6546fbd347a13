"""The command `flcore`: its subcommands, and how it ends."""

import io
import logging
import os
import sys
from importlib import import_module
from typing import Annotated

import typer

from flcore.cli.usage import ClickError, is_help, usage_line
from flcore.cli.version import print_version
from flcore.errors import FlcoreError

Group = dict[str, str]

COMMANDS: dict[str, str | Group] = {
    "new": "flcore.cli.new:new",
    "run": "flcore.cli.run:run",
    "server": "flcore.cli.server:server",
    "client": "flcore.cli.client:client",
    "login": "flcore.cli.login:login",
    "submit": "flcore.cli.submit:submit",
    "list": "flcore.cli.list_jobs:list_jobs",
    "show": "flcore.cli.show:show",
    "status": "flcore.cli.status:status",
    "plot": "flcore.cli.plot:plot",
    "report": "flcore.cli.report:report",
    "compare": "flcore.cli.compare:compare",
    "logs": "flcore.cli.logs:logs",
    "abort": "flcore.cli.end_job:abort",
    "download": "flcore.cli.download:download",
    "clone": "flcore.cli.submit:clone",
    "delete": "flcore.cli.end_job:delete",
    "aggregate": "flcore.cli.aggregate:aggregate",
    "rules": "flcore.cli.inspect:rules",
    "partition": "flcore.cli.partition:partition",
    "bench": "flcore.cli.bench:bench",
    "warm": "flcore.cli.warm:warm",
    "doctor": "flcore.cli.doctor:doctor",
    "job": {"check": "flcore.cli.inspect:check", "pack": "flcore.cli.pack:pack"},
    "certs": "flcore.cli.certs:certs_app",
    "audit": {"verify": "flcore.cli.audit:verify"},
}
"""The functions of the commands, and of those of groups, in the order of the help."""

GROUP_HELP = {"job": "Inspect and pack a job.", "audit": "Check a run's audit log."}


def options(
    version: Annotated[
        bool,
        typer.Option(
            "--version",
            help="Print the versions of flcore and Python, the platform and the kernels, and exit.",
            callback=print_version,
            is_eager=True,
        ),
    ] = False,
) -> None:
    """Options that stand before a command.

    `flcore --install-completion` makes the shell complete commands, options, jobs, runs and names of templates.
    """


def command_line(only: str = "") -> typer.Typer:
    """Return the command line.

    Args:
        only: The command that is used; no other one is imported. Default: "", all are there, as the help and the
            nearest name of a misspelt command need them.
    """
    app = typer.Typer(
        help="A high-performance aggregation core for federated learning.",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
    )
    app.callback()(options)  # a group, also with one command
    for name, target in COMMANDS.items():
        if only not in COMMANDS or name == only:
            _add(app, name, target)
    return app


def _add(app: typer.Typer, name: str, target: str | Group) -> None:
    """Import a command or a group, and add it."""
    if isinstance(target, dict):
        group = typer.Typer(help=GROUP_HELP[name], no_args_is_help=True)
        for command, function in target.items():
            _add(group, command, function)
        app.add_typer(group, name=name)
        return
    module, _, attribute = target.partition(":")
    found = getattr(import_module(module), attribute)
    if isinstance(found, typer.Typer):
        app.add_typer(found, name=name)
    else:
        app.command(name)(found)


def load() -> typer.Typer:
    """Import the command that the process's arguments name, and return the command line."""
    return command_line(sys.argv[1] if sys.argv[1:] else "")


def main(app: typer.Typer | None = None) -> None:
    """Run the command line. A `FlcoreError` or `OSError` is one line and exit code 1; Ctrl-C is 130, by Typer.

    A usage error is one line and exit code 2.

    Characters that the output's encoding lacks are escaped, so a name with an umlaut cannot fail a command.
    """
    _open_standard_streams()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    logging.basicConfig(format="%(message)s", handlers=[_StandardError()])
    # gRPC logs a traceback for each client that vanishes in mid-transfer; the server says so itself, in one line.
    logging.getLogger("grpc").setLevel(logging.CRITICAL)
    try:
        code = (app or load())(prog_name="flcore", standalone_mode=False)
    except ClickError as error:
        if not is_help(error):
            print(usage_line(error), file=sys.stderr)
        sys.exit(getattr(error, "exit_code", 2))
    except FlcoreError as error:
        print(f"flcore: {error}", file=sys.stderr)
        sys.exit(1)
    except OSError as error:
        place = f"{os.fsdecode(error.filename)}: " if isinstance(error.filename, str | bytes) else ""
        print(f"flcore: {place}{error.strerror or error}", file=sys.stderr)
        sys.exit(1)
    sys.exit(code or 0)  # of `typer.Exit`; a command returns nothing


def _open_standard_streams() -> None:
    """Open closed standard streams: else a later file or socket would get their numbers, and prints would go to it."""
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, mode, encoding="utf-8", closefd=False))  # noqa: SIM115 - it stays open


class _StandardError(logging.Handler):
    """Writes to the current `sys.stderr`, which a live progress line replaces."""

    def emit(self, record: logging.LogRecord) -> None:
        sys.stderr.write(f"{self.format(record)}\n")  # in one write: other threads print, too
