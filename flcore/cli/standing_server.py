"""`flcore server` without a job: a standing federation, until Ctrl-C or SIGTERM."""

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from flcore_transport import GrpcServer, Service, split_address

from flcore.aggregation.budget import Budget
from flcore.cli.addresses import agent_commands, agent_kit_command
from flcore.cli.log_options import LogOptions
from flcore.cli.server_observers import ObserverOptions, open_server_observers
from flcore.cli.server_options import Answer, Listening, log_certificate
from flcore.cli.web_page import log_page
from flcore.event_log.federation_lines import FEDERATION_LINES
from flcore.event_log.log import EventLog, Log
from flcore.federation.members import MembersTls
from flcore.federation.roles import ROLES_FILE, Roles
from flcore.federation.standing_server import FederationSettings, StandingServer
from flcore.server.recorded_run import Durability
from flcore.text import counted

if TYPE_CHECKING:  # it imports the extra `web`
    from flcore.web import Source

ShowPage = Callable[["Callable[[], Source]", Callable[[str, str], None]], AbstractContextManager[None]]
"""Shows the page of a source while a block lasts, and says its address (`web_page`)."""

DEFAULT_FEDERATION = Path("federation")


def serve_federation(
    directory: Path,
    listening: Listening,
    memory: Budget,
    slots: int,
    plan: str,
    durability: Durability,
    log_options: LogOptions,
    show_page: ShowPage,
    observers: ObserverOptions,
) -> None:
    """Serve the federation in a directory until the process is interrupted."""
    settings = FederationSettings(memory, slots, plan, durability)

    def listen(service: Service, answer: Answer) -> GrpcServer:
        tls = None if listening.tls is None else MembersTls(listening.tls, Roles(directory / ROLES_FILE))
        return listening.open(service, memory, answer, tls)

    with ExitStack() as stack:
        log = stack.enter_context(log_options.open())
        stack.enter_context(_log_stop(log, directory))
        opened = stack.enter_context(open_server_observers(observers, directory, log))
        settings = replace(settings, observe_runs=opened.observe_runs)
        server = stack.enter_context(
            StandingServer(directory, listen, settings, observe=EventLog(log, FEDERATION_LINES))
        )
        opened.show_federation(server.state)

        def source() -> "Source":
            from flcore.web import FederationSource  # imports the extra `web`

            return FederationSource(server)

        stack.enter_context(show_page(source, log_page(log)))
        host, port = split_address(server.address)
        if listening.tls is None:
            commands = agent_commands(host, port)
        else:
            commands = [agent_kit_command(listening.tls.certificates.hosts[0], port)]
            log_certificate(log, listening.tls.certificates)
        share = settings.share.nbytes >> 20
        jobs = counted(slots, "job")
        text = f"a standing federation in {directory}: {jobs} at a time, each with a budget of {share}MiB"
        log.write_block(text, "federation", directory=str(directory), jobs=slots, job_budget_bytes=share << 20)
        shown = server.address.replace("127.0.0.1", "localhost")
        log.write_block(
            "\n  ".join([f"listening on {shown}; sites join with", *commands]),
            "listening",
            address=server.address,
            commands=commands,
        )
        # Not one long wait: a signal that comes just before the main thread waits is handled after the wait.
        while True:
            time.sleep(1.0)


@contextmanager
def _log_stop(log: Log, directory: Path) -> Iterator[None]:
    """Log one line when Ctrl-C or SIGTERM ends the block."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit) as error:
        signal = "SIGINT" if isinstance(error, KeyboardInterrupt) else "SIGTERM"
        text = f"stopped by {signal}; jobs that run go on when the server of {directory} is started again"
        log.write_line(text, "stopped", signal=signal, directory=str(directory))
        raise
