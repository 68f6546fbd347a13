"""The command `flcore`: its subcommands, and how it ends."""

import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import typer
from flcore_kernels import KernelError
from flcore_transport import TransportError

from flcore.cli.aggregate import aggregate
from flcore.cli.bench import bench
from flcore.cli.client import client
from flcore.cli.inspect import check, rules
from flcore.cli.run import run
from flcore.cli.server import server
from flcore.cli.warm import warm
from flcore.errors import FlcoreError

AGAIN_S = 0.05
"""How long after an interrupt that a finalizer has swallowed the next one comes."""

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

job_app = typer.Typer(help="Look at a job.", no_args_is_help=True)
job_app.command("check")(check)
app.add_typer(job_app, name="job")


def main() -> None:
    """Run the command line; an error of ours is one message and exit code 1. (Ctrl-C is 130, by Typer.)"""
    logging.basicConfig(format="%(message)s", stream=sys.stderr)
    # gRPC logs a traceback for each client that vanishes in mid-transfer; the server says so itself, in one line.
    logging.getLogger("grpc").setLevel(logging.CRITICAL)
    try:
        with _interrupts_in_finalizers_heeded():
            app()
    except (FlcoreError, TransportError, KernelError) as error:
        print(f"flcore: {error}", file=sys.stderr)
        sys.exit(1)


@contextmanager
def _interrupts_in_finalizers_heeded() -> Iterator[None]:
    """Raise Ctrl-C again if it came while a finalizer ran: there Python prints the exception and goes on."""
    before = sys.unraisablehook

    def again(unraisable: "sys.UnraisableHookArgs") -> None:
        if issubclass(unraisable.exc_type, KeyboardInterrupt):
            threading.Timer(AGAIN_S, os.kill, (os.getpid(), signal.SIGINT)).start()
        else:
            before(unraisable)

    sys.unraisablehook = again
    try:
        yield
    finally:
        sys.unraisablehook = before
