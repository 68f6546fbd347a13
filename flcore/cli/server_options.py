"""What `flcore server` has in common with and without a job: types of its options, its certificates."""

from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path

import typer
from flcore_transport import Ask, GrpcServer, Identity, Reply, ServerTls, Service

from flcore.aggregation.budget import Budget
from flcore.errors import CertificateError
from flcore.event_log.log import Log
from flcore.identity.credentials import ServerCertificates
from flcore.identity.tls import FederationTls
from flcore.job.site import RENAMED_PLANS, ServerSite

DEFAULT_CERTS = Path("certs/server")
DEFAULT_BUDGET = "1GiB"
Answer = Callable[[Identity | None, Ask], "Reply | Future[Reply]"]


class Plan(StrEnum):
    """When updates are folded."""

    BATCH = "batch"
    STREAMING = "streaming"


def parse_plan(name: str) -> Plan:
    """Return the plan of this name, or raise a usage error."""
    if name not in list(Plan):
        renamed = f"; it is called {RENAMED_PLANS[name]} now" if name in RENAMED_PLANS else ""
        raise typer.BadParameter(f"expected {' or '.join(Plan)}, got {name!r}{renamed}")
    return Plan(name)


class Receipts(StrEnum):
    """When a client gets its receipt."""

    DISK = "disk"
    MEMORY = "memory"


@dataclass(frozen=True)
class Listening:
    """Where and how a server listens."""

    host: str
    port: int
    tls: FederationTls | None
    allow_remote: bool

    def require_free(self) -> None:
        """Raise `AddressUnavailable` unless the port is free, before anything is changed for the server."""
        GrpcServer.require_free(self.host, self.port)

    def open(
        self, service: Service, memory: Budget, answer: Answer | None = None, tls: ServerTls | None = None
    ) -> GrpcServer:
        """Open the port for a service, and for requests that `answer` answers. `tls` takes the place of its own."""
        return GrpcServer(
            service,
            host=self.host,
            port=self.port,
            tls=tls or self.tls,
            allow_remote=self.allow_remote,
            in_flight_bytes=memory.in_flight_bytes,
            max_connections=memory.connections,
            answer=answer,
        )


def choose_budget(option: str | None, connections: int | None, site: ServerSite) -> Budget:
    """Return the budget of the options, else that of the site, else the default."""
    budget = Budget.parse(next(given for given in (option, site.budget, DEFAULT_BUDGET) if given is not None))
    return replace(budget, connections=connections or site.connections or budget.connections)


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
