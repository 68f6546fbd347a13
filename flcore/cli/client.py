"""`flcore client`: one client of a job on a real machine."""

from pathlib import Path
from typing import Annotated

import typer
from flcore_transport import GrpcConnection, split_address
from rich.console import Console

from flcore.cli.server import require_insecure
from flcore.client.client import Client
from flcore.client.executor import Executor
from flcore.client.task import Site
from flcore.job.job import Job
from flcore.job.site import read_site
from flcore.process import exit_on_sigterm, keep_freed_memory


def client(
    job: Annotated[str, typer.Argument(help="The same job as the server's: a directory, or a bundled job (digits).")],
    name: Annotated[str, typer.Option(help="This client's name, one of the job's clients.")],
    server: Annotated[str, typer.Option(help="The server's address, HOST:PORT.")],
    site: Annotated[
        Path | None, typer.Option(help="Site file, passed to the job's code. (default: the job's site.toml, if any)")
    ] = None,
    insecure: Annotated[bool, typer.Option(help="Connect in plaintext, to a server on this machine only.")] = False,
    insecure_remote: Annotated[bool, typer.Option(help="Connect in plaintext, also to another machine.")] = False,
) -> None:
    """Take part in a job until the server ends it. Retries until the server is reachable."""
    keep_freed_memory()
    exit_on_sigterm()
    require_insecure(insecure, insecure_remote)
    console = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)
    try:
        split_address(server)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--server") from error
    loaded = Job.load(job)
    contract = loaded.contract
    config = read_site(site, loaded.directory)
    executor = Executor(loaded, Site(name, contract.client_names, contract.seed, config))
    connection = GrpcConnection(server, allow_remote=insecure_remote)
    console.print(f"{name}: joining {server} as soon as it can be reached; Ctrl-C leaves")
    reason = Client(loaded, executor, connection, notify=console.print).start().result()
    console.print(f"{name}: {reason}")
