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
    AnswerContent,
    JoinContent,
    TaskContent,
    WelcomeContent,
    decode_spec,
    parse_content,
)
from flcore.model.wire_format import WireFormat
from flcore.process import keep_freed_memory
from flcore.server.events import Event, TaskSent
from flcore.server.federation import Federation
from flcore.server.serve import serve
from flcore.server.task_attempt import AttemptPolicy

__all__ = [
    "DEFAULT_BUDGET",
    "TaskSent",
    "Budget",
    "Client",
    "Event",
    "Executor",
    "Federation",
    "JoinContent",
    "AttemptPolicy",
    "Site",
    "Staging",
    "TaskContent",
    "AnswerContent",
    "WelcomeContent",
    "aggregate_checkpoints",
    "keep_freed_memory",
    "parse_content",
    "serve",
    "decode_spec",
    "WireFormat",
]
