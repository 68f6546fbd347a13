"""`flcore client`: one client of a job on a real machine."""

from concurrent.futures import wait
from pathlib import Path
from typing import Annotated

import typer
from flcore_transport import GrpcConnection, split_address
from rich.console import Console

from flcore.client.client import Client
from flcore.client.executor import Executor
from flcore.client.task import Site
from flcore.errors import CertificateError
from flcore.identity.credentials import ClientCertificates
from flcore.identity.tls import client_keys
from flcore.job.job import Job
from flcore.job.site import read_site
from flcore.process import exit_on_sigterm, keep_freed_memory


def client(
    job: Annotated[str, typer.Argument(help="The same job as the server's: a directory, or a bundled job (digits).")],
    kit: Annotated[
        Path | None,
        typer.Option(
            help="Directory of this client's unpacked kit: its certificate, and the server's address. TLS needs it."
        ),
    ] = None,
    name: Annotated[str | None, typer.Option(help="This client's name. (default: the kit's)")] = None,
    server: Annotated[str | None, typer.Option(help="The server's address, HOST:PORT. (default: the kit's)")] = None,
    site: Annotated[
        Path | None,
        typer.Option(help="Site file, passed to the job's code. (default: the kit's site.toml, or the job's, if any)"),
    ] = None,
    give_up_after: Annotated[
        float | None,
        typer.Option(
            min=1, metavar="SECONDS", help="End when the server cannot be reached for this long. (default: never)"
        ),
    ] = None,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Plaintext without TLS, to a server on this machine only.")
    ] = False,
    insecure_remote: Annotated[
        bool, typer.Option("--insecure-remote", help="Plaintext without TLS, also to another machine.")
    ] = False,
) -> None:
    """Take part in a job until the server ends it. Retries until the server is reachable."""
    keep_freed_memory()
    exit_on_sigterm()
    keys = None
    if not (insecure or insecure_remote):
        certificates = load_kit(kit)
        if name not in (None, certificates.identity.name):
            raise typer.BadParameter(f"the kit is that of {certificates.identity.name!r}", param_hint="--name")
        keys, name, server = client_keys(certificates), certificates.identity.name, server or certificates.server
    elif kit is not None:
        raise typer.BadParameter("a kit is for TLS: leave --insecure out", param_hint="--kit")
    if name is None or server is None:
        raise typer.BadParameter("expected --name and --server, as no kit names them")
    console = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)
    try:
        split_address(server)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--server") from error
    loaded = Job.load(job)
    contract = loaded.contract
    config = read_site(site or (None if kit is None else kit / "site.toml"), loaded.directory)
    config.pop("identity", None)  # the kit's table: for the connection, not for the job's code
    executor = Executor(loaded, Site(name, contract.client_names, contract.seed, config))
    connection = GrpcConnection(server, keys=keys, allow_remote=insecure_remote)
    console.print(f"{name}: joining {server} as soon as it can be reached; Ctrl-C leaves")
    running = Client(loaded, executor, connection, console.print, give_up_after_s=give_up_after)
    ended = running.start()
    while not wait([ended], timeout=1.0).done:
        pass  # not one long wait: a signal that comes just before the main thread waits is handled after the wait
    reason = ended.result()
    console.print(f"{name}: {reason}")


def load_kit(kit: Path | None) -> ClientCertificates:
    """Return the certificates of an unpacked kit, or raise `CertificateError`."""
    if kit is None:
        raise CertificateError(
            "expected a kit, as TLS needs a certificate; unpack the one that the federation's operator has made with "
            "`flcore certs issue NAME`, and give its directory (--kit DIR; --insecure: plaintext, on this machine only)"
        )
    if not kit.exists():
        raise CertificateError(
            f"{kit}: expected the directory of an unpacked kit, got none; unpack it: unzip {kit}.zip"
        )
    if kit.suffix == ".zip":
        raise CertificateError(f"{kit}: expected an unpacked kit, got a zip file; unpack it, and give its directory")
    return ClientCertificates.load(kit)
