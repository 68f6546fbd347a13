"""The state of running jobs, folded from the events of their servers: for terminals, pages and metrics."""

from flcore.status.board import StatusBoard
from flcore.status.job_status import (
    ClientStatus,
    FederationStatus,
    JobStatus,
    Refusal,
    ResourceStatus,
    RoundStatus,
    SiteStatus,
    State,
)
from flcore.status.status_content import parse_status
from flcore.status.stored_status import read_status
from flcore.status.timeline import PHASES, Phase, PhaseName

__all__ = [
    "PHASES",
    "ClientStatus",
    "FederationStatus",
    "JobStatus",
    "Phase",
    "PhaseName",
    "Refusal",
    "ResourceStatus",
    "RoundStatus",
    "SiteStatus",
    "State",
    "StatusBoard",
    "parse_status",
    "read_status",
]
