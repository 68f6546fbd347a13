"""Internals of flcore that synthetic servers and clients need: messages, wire formats, server and client.

The other modules of the benchmark import public names only, and these from here.
"""

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
    decode_spec,
    parse_message,
)
from flcore.model.wire_format import WireFormat
from flcore.process import keep_freed_memory
from flcore.server.events import Event, TaskSent
from flcore.server.federation import Federation
from flcore.server.serve import serve
from flcore.server.task_round import RoundPolicy

__all__ = [
    "DEFAULT_BUDGET",
    "TaskSent",
    "Budget",
    "Client",
    "Event",
    "Executor",
    "Federation",
    "JoinMessage",
    "RoundPolicy",
    "Site",
    "Staging",
    "TaskMessage",
    "UpdateMessage",
    "WelcomeMessage",
    "aggregate_checkpoints",
    "keep_freed_memory",
    "parse_message",
    "serve",
    "decode_spec",
    "WireFormat",
]
