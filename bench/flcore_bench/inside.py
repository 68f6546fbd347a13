"""What the synthetic processes take from inside flcore, where it has no public name: messages, forms, both ends."""

from flcore.aggregation.budget import DEFAULT_BUDGET, Budget
from flcore.aggregation.checkpoint_aggregation import aggregate_checkpoints
from flcore.aggregation.staging import Staging
from flcore.client.client import Client
from flcore.client.executor import Executor
from flcore.client.task import Site
from flcore.job.messages import (
    JoinMessage,
    TaskMessage,
    UpdateMessage,
    WelcomeMessage,
    parse_message,
    spec_of,
)
from flcore.model.wire_format import WireFormat
from flcore.process import keep_freed_memory
from flcore.server.events import Asked, Event
from flcore.server.federation import Federation
from flcore.server.serve import serve
from flcore.server.task_round import RoundRules

__all__ = [
    "DEFAULT_BUDGET",
    "Asked",
    "Budget",
    "Client",
    "Event",
    "Executor",
    "Federation",
    "JoinMessage",
    "RoundRules",
    "Site",
    "Staging",
    "TaskMessage",
    "UpdateMessage",
    "WelcomeMessage",
    "aggregate_checkpoints",
    "keep_freed_memory",
    "parse_message",
    "serve",
    "spec_of",
    "WireFormat",
]
