"""`flcore server`: the server's side of a job on a real machine, or a standing federation."""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from flcore_transport import Service, split_address

from flcore.aggregation.optimizer_state import state_bytes
from flcore.cli.addresses import DEFAULT_PORT, join_commands, kit_command, listen_address
from flcore.cli.completion import job_names
from flcore.cli.history_plot import plot_history
from flcore.cli.interrupts import log_interrupt
from flcore.cli.log_options import LogFileOption, LogFormat, LogFormatOption, LogOptions, VerboseOption
from flcore.cli.server_observers import ObserverOptions, open_server_observers
from flcore.cli.server_options import (
    DEFAULT_CERTS,
    Listening,
    Plan,
    Receipts,
    choose_budget,
    load_tls,
    log_certificate,
    parse_plan,
)
from flcore.cli.standing_server import DEFAULT_FEDERATION, serve_federation
from flcore.cli.web_page import TokenOption, WebOption, log_page, web_page
from flcore.event_log.log import log_events
from flcore.federation.ping import answer_pings
from flcore.job.job import Job
from flcore.job.site import MOST_CONNECTIONS, read_site, server_site
from flcore.model.model_paths import require_directory
from flcore.process import exit_on_sigterm, keep_freed_memory, raise_open_file_limit
from flcore.rules.kinds import step_of
from flcore.server.events import notify_all
from flcore.server.federation import Federation
from flcore.server.file_systems import require_local_file_system
from flcore.server.recorded_run import Durability
from flcore.server.serve import Server, serve
from flcore.status.board import StatusBoard
from flcore.status.observed_run import ObservedRun, open_observers

if TYPE_CHECKING:  # it imports the extra `web`
    from flcore.web import Source


def server(
    job: Annotated[
        str | None,
        typer.Argument(
            help="A directory with job.toml, or the name of a bundled job (digits). Without it, the server is a "
            "standing federation: it runs the jobs that leads submit (flcore submit).",
            show_default=False,
            autocompletion=job_names,
        ),
    ] = None,
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
            min=1,
            help="With a job: start the first round when this many clients are connected. (default: the job's quorum)",
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
    connections: Annotated[
        int | None,
        typer.Option(
            min=16,
            max=MOST_CONNECTIONS,
            metavar="N",
            help="The most connections at a time; two for each client are right. Each takes up to 96 KiB of memory "
            "beside the budget. (default: 1024)",
        ),
    ] = None,
    plan: Annotated[
        Plan | None,
        typer.Option(
            parser=parse_plan,
            metavar=f"<{'|'.join(Plan)}>",
            help="When updates are folded. batch: when the round closes; models are files, memory is the budget. "
            "streaming: when they are committed; models and a total of 4, 8 or 16 bytes per parameter are in memory. "
            "(default: batch)",
        ),
    ] = None,
    durability: Annotated[
        Receipts | None,
        typer.Option(
            help="When a client gets its receipt. disk: when its update is on the disk; no update with a receipt is "
            "lost if the server dies. memory: when its update is in memory; clients are asked again. (default: disk)",
            show_default=False,
        ),
    ] = None,
    network_file_system: Annotated[
        bool,
        typer.Option("--network-file-system", help="Allow an output directory on a network file system with disk."),
    ] = False,
    jobs: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=100,
            metavar="N",
            help="Without a job: how many jobs run at a time. Each has an equal share of the budget and of the "
            "connections. (default: 1)",
        ),
    ] = None,
    site: Annotated[
        Path | None,
        typer.Option(
            help="Site file; its table \\[server] sets budget, connections, plan and durability, its table "
            "\\[tracking] TensorBoard, MLflow and Weights & Biases. "
            "(default: site.toml of the job, or of the federation's directory, if any)"
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Output directory; created if missing. (default: runs/NAME; federation without a job, which goes on "
            "with what is there)"
        ),
    ] = None,
    fresh: Annotated[
        bool,
        typer.Option(
            "--fresh",
            help="With a job: rename an earlier run in that directory to NAME.1, and start a new one. Without it, a "
            "run that is not over goes on.",
        ),
    ] = False,
    metrics: Annotated[
        str | None,
        typer.Option(
            metavar="\\[HOST:]PORT",
            help="Serve /metrics for Prometheus here, in plaintext and read-only. HOST is 127.0.0.1 unless given. "
            "Needs the extra metrics.",
        ),
    ] = None,
    metrics_remote: Annotated[
        bool, typer.Option("--metrics-remote", help="Allow another HOST of --metrics than one of this machine alone.")
    ] = False,
    traces: Annotated[
        bool,
        typer.Option(
            "--traces",
            help="Export a trace of each round by OpenTelemetry (OTLP over HTTP), set by the variables OTEL_*. Needs "
            "the extra traces.",
        ),
    ] = False,
    log_format: LogFormatOption = LogFormat.TEXT,
    log_file: LogFileOption = None,
    verbose: VerboseOption = False,
    certs: Annotated[
        Path, typer.Option(help="Directory of the server's certificates, as `flcore certs init` makes it.")
    ] = DEFAULT_CERTS,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Plaintext without TLS, to clients on this machine only.")
    ] = False,
    insecure_remote: Annotated[
        bool, typer.Option("--insecure-remote", help="Plaintext without TLS, also to other machines.")
    ] = False,
    web: WebOption = None,
    web_token: TokenOption = None,
) -> None:
    """Serve a job over mutual TLS to clients that join with `flcore client`; without a job, a standing federation."""
    keep_freed_memory()
    raise_open_file_limit()
    exit_on_sigterm()
    tls = None if insecure or insecure_remote else load_tls(certs)
    listen_host = host or ("127.0.0.1" if tls is None else "0.0.0.0")  # noqa: S104 - only clients with certificates
    if listen_host.startswith("["):
        raise typer.BadParameter(f"expected an address without brackets, got {host!r}", param_hint="--host")
    listening = Listening(listen_host, port, tls, insecure_remote)
    show_page = partial(
        web_page,
        None if web is None else listen_address(web, "--web"),
        certificates=None if tls is None else certs,
        hosts=() if tls is None else tls.certificates.hosts,
        token_file=web_token,
    )
    receipts: Durability | None = durability.value if durability else None
    log_options = LogOptions(log_format.value, log_file, verbose)
    if job is None:
        if wait_for is not None or fresh:
            raise typer.BadParameter("expected a job with --wait-for and --fresh, got none; leave them out")
        directory = require_directory(out or DEFAULT_FEDERATION)
        content = read_site(site, directory)
        settings = server_site(content)
        memory, plan_name = (
            choose_budget(budget, connections, settings),
            plan.value if plan else settings.plan or "batch",
        )
        chosen = _receipts(directory, receipts or settings.durability, network_file_system=network_file_system)
        observers = ObserverOptions(metrics, metrics_remote, traces, content, site.parent if site else directory)
        serve_federation(directory, listening, memory, jobs or 1, plan_name, chosen, log_options, show_page, observers)
        return
    if jobs is not None:
        raise typer.BadParameter("expected no job with --jobs, got one; leave either out", param_hint="--jobs")
    loaded = Job.load(job)
    content = read_site(site, loaded.directory)
    settings = server_site(content)
    memory, plan_name = choose_budget(budget, connections, settings), plan.value if plan else settings.plan or "batch"
    clients = loaded.contract.clients
    memory.require_connections(clients if isinstance(clients, int) else len(clients))
    directory = require_directory(out) if out else Path("runs") / loaded.contract.name
    chosen = _receipts(directory, receipts or settings.durability, network_file_system=network_file_system)
    observers = ObserverOptions(metrics, metrics_remote, traces, content, site.parent if site else loaded.directory)
    run = ObservedRun(loaded.contract.name, loaded.contract, StatusBoard.of(loaded.contract), directory)

    def source() -> "Source":
        from flcore.web import RunSource  # imports the extra `web`

        return RunSource(run.board, loaded.contract, directory)

    with log_options.open(loaded.contract.name) as log, log_interrupt(log, directory), show_page(source, log_page(log)):

        def started(running: Server, federation: Federation) -> None:
            state = state_bytes(federation.spec, step_of(loaded.load_rule()))
            peak = memory.peak_bytes(plan_name, federation.spec, loaded.contract.server.accumulate, state)
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

        def listen(service: Service) -> Server:
            return listening.open(service, memory, answer_pings)

        listening.require_free()
        with (
            open_server_observers(observers, directory, log) as opened,
            open_observers(opened.observe_runs, run) as observe_run,
        ):
            outcome = serve(
                loaded,
                listen,
                started=started,
                wait_for=wait_for,
                directory=directory,
                fresh=fresh,
                observe=notify_all(log_events(log, loaded.contract), observe_run),
                plan=plan_name,
                budget=memory,
                durability=chosen,
                board=run.board,
            )
        plot_history(loaded.contract, outcome.history, None, directory / "history.png")
        left = sorted(path.name for path in directory.iterdir())
        log.write_line(f"done: {', '.join(left)} in {directory}", "done", directory=str(directory))


def _receipts(directory: Path, chosen: Durability | None, *, network_file_system: bool) -> Durability:
    """Return when clients get their receipts. Raises `JobError` if the directory's disk cannot keep the promise."""
    receipts: Durability = chosen or "disk"
    if receipts == "disk" and not network_file_system:
        require_local_file_system(directory)
    return receipts
