"""`flcore server`: the server's side of a job on a real machine."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from flcore_transport import GrpcServer, Service
from rich.console import Console

from flcore.cli.plot import plot_history
from flcore.cli.progress import log_to
from flcore.errors import FlcoreError
from flcore.job.job import Job
from flcore.server.federation import Federation
from flcore.server.serve import Server, serve

DEFAULT_PORT = 8470


class Plan(StrEnum):
    """When updates are folded."""

    AT_CLOSE = "at-close"
    STREAMING = "streaming"


def server(
    job: Annotated[str, typer.Argument(help="A directory with job.toml, or the name of a bundled job (digits).")],
    host: Annotated[str, typer.Option(help="The address to listen on.")] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="The port to listen on; 0 takes a free one.")
    ] = DEFAULT_PORT,
    wait_for: Annotated[
        int | None, typer.Option(min=1, help="Begin when so many clients are connected. (default: the job's quorum)")
    ] = None,
    plan: Annotated[
        Plan,
        typer.Option(
            help="at-close: hold all updates, and fold them when the round closes. streaming: fold each as it comes, "
            "into a total of 4, 8 or 16 bytes per parameter; needs less memory for many clients."
        ),
    ] = Plan.AT_CLOSE,
    out: Annotated[Path | None, typer.Option(help="Where to write. (default: runs/NAME)")] = None,
    insecure: Annotated[bool, typer.Option(help="Plaintext, on this machine only.")] = False,
    insecure_remote: Annotated[bool, typer.Option(help="Plaintext, from other machines too.")] = False,
) -> None:
    """Serve a job to clients that join with `flcore client`."""
    require_insecure(insecure, insecure_remote)
    loaded = Job.load(job)
    directory = out or Path("runs") / loaded.contract.name
    console = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)

    def listen(service: Service) -> Server:
        return GrpcServer(service, host=host, port=port, allow_remote=insecure_remote)

    def started(running: Server, _: Federation) -> None:
        shown = running.address.replace("127.0.0.1", "localhost")
        needed = wait_for or loaded.contract.server.quorum
        console.print(f"listening on {shown}; the first round begins with {needed} clients, which join with")
        console.print(f"  flcore client {job} --name NAME --server {shown} --insecure")

    outcome = serve(
        loaded,
        listen,
        started=started,
        wait_for=wait_for,
        directory=directory,
        observe=log_to(console, loaded.contract),
        plan=plan.value,
    )
    plot_history(loaded.contract, outcome.history, None, directory / "history.png")
    console.print(f"done: {', '.join(sorted(path.name for path in directory.iterdir()))} in {directory}")


def require_insecure(insecure: bool, insecure_remote: bool) -> None:
    """Refuse to speak plaintext to anybody who has not asked for it."""
    if not (insecure or insecure_remote):
        raise FlcoreError("TLS is not available yet; --insecure speaks plaintext, on this machine only")
