"""`flcore client`: one client of a job on a real machine, or a site's agent."""

from pathlib import Path
from typing import Annotated

import typer
from flcore_transport import GrpcConnection, split_address
from rich.console import Console

from flcore.agent.agent import AgentIdentity
from flcore.cli.agent import await_end, run_agent
from flcore.cli.client_progress import show_activity
from flcore.cli.completion import job_names
from flcore.cli.log_options import LogFileOption, LogFormat, LogFormatOption, LogOptions, VerboseOption
from flcore.client.client import Client
from flcore.client.executor import Executor
from flcore.client.observed_connection import ObservedConnection
from flcore.client.state_directory import StateDirectory
from flcore.client.task import Site
from flcore.errors import CertificateError
from flcore.event_log.log import MAX_LINE_CHARACTERS, console_writer, write_to_stderr
from flcore.identity.credentials import ClientCertificates
from flcore.identity.tls import client_keys
from flcore.job.job import Job
from flcore.job.site import read_site
from flcore.process import exit_on_sigterm, keep_freed_memory
from flcore.text import printable


def client(
    job: Annotated[
        str | None,
        typer.Argument(
            help="The same job as the server's: a directory, or a bundled job (digits). Without it: take part in a "
            "standing federation, in the jobs that the site file allows.",
            autocompletion=job_names,
        ),
    ] = None,
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
    state: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Directory that keeps this client's last update, so that a restarted client sends it without training "
            "again, and the files of the job's code (SCAFFOLD). One per client and job. (default: memory only; without "
            "JOB: `agent` in the kit)",
        ),
    ] = None,
    jobs_dir: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Without JOB: a job's directory, or one with several, from which jobs of the federation may run, "
            "beside those of the site file (job_directories).",
        ),
    ] = None,
    log_format: LogFormatOption = LogFormat.TEXT,
    log_file: LogFileOption = None,
    verbose: VerboseOption = False,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Plaintext without TLS, to a server on this machine only.")
    ] = False,
    insecure_remote: Annotated[
        bool, typer.Option("--insecure-remote", help="Plaintext without TLS, also to another machine.")
    ] = False,
) -> None:
    """Take part in a job until the server ends it, or in the jobs of a standing federation.

    Retries until the server is reachable.
    """
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
    log_options = LogOptions(log_format.value, log_file, verbose)
    try:
        split_address(server)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--server") from error
    if job is None:
        site_file = site or (None if kit is None else kit / "site.toml")
        where = state or (Path(f"{name}-agent") if kit is None else kit / "agent")
        identity = AgentIdentity(name, server, keys, insecure_remote)
        with log_options.open() as log:
            run_agent(identity, site_file, where, jobs_dir, log, give_up_after)
        return
    if jobs_dir is not None:
        raise typer.BadParameter("expected it without JOB only, which names the one job", param_hint="--jobs-dir")
    loaded = Job.load(job)
    contract = loaded.contract
    config = read_site(site or (None if kit is None else kit / "site.toml"), loaded.directory)
    config.pop("identity", None)  # the kit's table: for the connection, not for the job's code
    # Before the job's code runs, which may read data for minutes: a directory that is refused is refused at once.
    # It stays locked until the process has ended: after Ctrl-C, the client's thread may still write to it.
    kept = None if state is None else StateDirectory(state, client=name, contract=contract)
    state_directory = None if kept is None else kept.job_directory()
    site_of_client = Site(name, contract.client_names, contract.seed, config, state_directory)
    console = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)
    # A live line moves the lines of the log up, which are printed above it.
    write = console_writer(console) if console.is_terminal else write_to_stderr
    with log_options.open(contract.name, write=write) as log, show_activity(name, console, log) as show:

        def say(text: str) -> None:
            log.write_line(printable(text, MAX_LINE_CHARACTERS), "notice", client=name)

        executor = Executor(loaded, site_of_client, on_progress=show.tell_progress)
        say(f"{name}: joining {server} as soon as it can be reached; Ctrl-C leaves")
        connection = ObservedConnection(
            GrpcConnection(server, keys=keys, allow_remote=insecure_remote), show.tell_activity
        )
        running = Client(loaded, executor, connection, say, give_up_after_s=give_up_after, state=kept)
        ended = running.start()
        try:
            reason = await_end(ended)
        except (KeyboardInterrupt, SystemExit):
            say(f"{name}: has left; the server goes on without this client")
            raise
        say(f"{name}: {reason}")


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
