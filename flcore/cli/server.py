"""`flcore server`: the server's side of a job on a real machine."""

import logging
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from flcore_transport import GrpcServer, Service, split_address

from flcore.aggregation.budget import Budget
from flcore.cli.addresses import DEFAULT_PORT, join_commands, kit_command
from flcore.cli.log import Log, LogHandler, log_events
from flcore.cli.plot import plot_history
from flcore.errors import CertificateError
from flcore.identity.credentials import ServerCertificates
from flcore.identity.tls import FederationTls
from flcore.job.job import Job
from flcore.job.site import RENAMED_PLANS, read_site, server_site
from flcore.model.model_paths import require_directory
from flcore.process import exit_on_sigterm, keep_freed_memory, raise_open_file_limit
from flcore.server.federation import Federation
from flcore.server.serve import Server, serve

DEFAULT_CERTS = Path("certs/server")
DEFAULT_BUDGET = "1GiB"


class Plan(StrEnum):
    """When updates are folded."""

    BATCH = "batch"
    STREAMING = "streaming"


def _parse_plan(name: str) -> Plan:
    if name not in list(Plan):
        renamed = f"; it is called {RENAMED_PLANS[name]} now" if name in RENAMED_PLANS else ""
        raise typer.BadParameter(f"expected {' or '.join(Plan)}, got {name!r}{renamed}")
    return Plan(name)


class LogFormat(StrEnum):
    """How a log is written."""

    TEXT = "text"
    JSON = "json"


def server(
    job: Annotated[str, typer.Argument(help="A directory with job.toml, or the name of a bundled job (digits).")],
    host: Annotated[
        str | None,
        typer.Option(help="The address to listen on. (default: 0.0.0.0, all of IPv4; 127.0.0.1 with --insecure)"),
    ] = None,
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="The port to listen on; 0 chooses a free port.")
    ] = DEFAULT_PORT,
    wait_for: Annotated[
        int | None,
        typer.Option(
            min=1, help="Start the first round when this many clients are connected. (default: the job's quorum)"
        ),
    ] = None,
    budget: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE",
            help="Memory limit for payloads, such as 512MiB or 2GB; beyond it updates are staged on disk. "
            "(default: 1GiB)",
        ),
    ] = None,
    plan: Annotated[
        Plan | None,
        typer.Option(
            parser=_parse_plan,
            metavar=f"<{'|'.join(Plan)}>",
            help="When updates are folded. batch: when the round closes; models are files, memory is the budget. "
            "streaming: when they are committed; models and a total of 4, 8 or 16 bytes per parameter are in memory. "
            "(default: batch)",
        ),
    ] = None,
    site: Annotated[
        Path | None,
        typer.Option(
            help="Site file; its table \\[server] sets budget and plan. (default: the job's site.toml, if any)"
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Output directory; created if missing. (default: runs/NAME)")] = None,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Rename an earlier run in that directory to NAME.1, and start a new one.")
    ] = False,
    log_format: Annotated[LogFormat, typer.Option(help="Format of the log: lines of text or of JSON.")] = (
        LogFormat.TEXT
    ),
    certs: Annotated[
        Path, typer.Option(help="Directory of the server's certificates, as `flcore certs init` makes it.")
    ] = DEFAULT_CERTS,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Plaintext without TLS, to clients on this machine only.")
    ] = False,
    insecure_remote: Annotated[
        bool, typer.Option("--insecure-remote", help="Plaintext without TLS, also to other machines.")
    ] = False,
) -> None:
    """Serve a job over mutual TLS to clients that join with `flcore client`."""
    keep_freed_memory()
    raise_open_file_limit()
    exit_on_sigterm()
    tls = None if insecure or insecure_remote else load_tls(certs)
    listen_host = host or ("127.0.0.1" if tls is None else "0.0.0.0")  # noqa: S104 - only clients with certificates
    if listen_host.startswith("["):
        raise typer.BadParameter(f"expected an address without brackets, got {host!r}", param_hint="--host")
    loaded = Job.load(job)
    site_settings = server_site(read_site(site, loaded.directory))
    memory = Budget.parse(next(given for given in (budget, site_settings.budget, DEFAULT_BUDGET) if given is not None))
    plan_name = plan.value if plan else site_settings.plan or Plan.BATCH.value
    directory = require_directory(out) if out else Path("runs") / loaded.contract.name

    def listen(service: Service) -> Server:
        return GrpcServer(
            service,
            host=listen_host,
            port=port,
            tls=tls,
            allow_remote=insecure_remote,
            in_flight_bytes=memory.in_flight_bytes,
        )

    with Log(log_format.value) as log:
        logging.getLogger().handlers = [LogHandler(log)]

        def started(running: Server, federation: Federation) -> None:
            peak = memory.peak_bytes(plan_name, federation.spec, loaded.contract.server.accumulate)
            log.write_block(
                f"plan {plan_name}, budget {memory.nbytes >> 20}MiB: at most {peak >> 20}MiB of memory",
                "memory",
                plan=plan_name,
                budget_bytes=memory.nbytes,
                peak_bytes=peak,
            )
            shown = running.address.replace("127.0.0.1", "localhost")
            if tls is None:
                commands = join_commands(job, *split_address(running.address))
            else:
                commands = [kit_command(job, tls.certificates.hosts[0], split_address(running.address)[1])]
                log_certificate(log, tls.certificates)
            needed = wait_for or loaded.contract.server.quorum
            lines = [f"listening on {shown}; the first round begins with {needed} clients, which join with"]
            log.write_block(
                "\n  ".join([*lines, *commands]),
                "listening",
                address=running.address,
                clients=needed,
                commands=commands,
            )

        outcome = serve(
            loaded,
            listen,
            started=started,
            wait_for=wait_for,
            directory=directory,
            fresh=fresh,
            observe=log_events(log, loaded.contract),
            plan=plan_name,
            budget=memory,
        )
        plot_history(loaded.contract, outcome.history, None, directory / "history.png")
        left = sorted(path.name for path in directory.iterdir())
        log.write_line(f"done: {', '.join(left)} in {directory}", "done", directory=str(directory))


def load_tls(directory: Path) -> FederationTls:
    """Return a server's side of mutual TLS, or raise `CertificateError`."""
    if not directory.is_dir():
        raise CertificateError(
            f"expected the server's certificates in {directory}, which is no directory; make them with "
            "`flcore certs init FEDERATION --host HOST`, or give their directory with --certs (--insecure: plaintext, "
            "on this machine only)"
        )
    return FederationTls(directory)


def log_certificate(log: Log, certificates: ServerCertificates) -> None:
    """Say whose server this is, and until when its certificate is valid."""
    federation, expires = certificates.identity.federation, certificates.expires
    log.write_line(
        f"TLS: the federation {federation}; the server's certificate is valid until {expires:%Y-%m-%d}",
        "tls",
        federation=federation,
        hosts=list(certificates.hosts),
        expires=expires.isoformat(),
    )
