"""The command `flcore`: its subcommands, and how it ends."""

import io
import logging
import os
import sys

import typer

from flcore.cli.aggregate import aggregate
from flcore.cli.bench import bench
from flcore.cli.certs import certs_app
from flcore.cli.client import client
from flcore.cli.inspect import check, rules
from flcore.cli.run import run
from flcore.cli.server import server
from flcore.cli.warm import warm
from flcore.errors import FlcoreError

app = typer.Typer(
    help="A high-performance aggregation core for federated learning.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command()(run)
app.command()(server)
app.command()(client)
app.command()(aggregate)
app.command()(rules)
app.command()(bench)
app.command()(warm)

job_app = typer.Typer(help="Inspect a job.", no_args_is_help=True)
job_app.command("check")(check)
app.add_typer(job_app, name="job")
app.add_typer(certs_app, name="certs")


def main() -> None:
    """Run the command line. A `FlcoreError` or `OSError` is one line and exit code 1; Ctrl-C is 130, by Typer.

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
        app()
    except FlcoreError as error:
        print(f"flcore: {error}", file=sys.stderr)
        sys.exit(1)
    except OSError as error:
        place = f"{os.fsdecode(error.filename)}: " if isinstance(error.filename, str | bytes) else ""
        print(f"flcore: {place}{error.strerror or error}", file=sys.stderr)
        sys.exit(1)


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
