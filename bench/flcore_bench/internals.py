"""Internals of flcore that benchmarks need: messages, wire formats, server and client, rules by name, the digits.

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
from flcore.jobs.digits.digits import digits_file
from flcore.model.wire_format import WireFormat
from flcore.partition import dirichlet_balanced
from flcore.process import keep_freed_memory
from flcore.rules.kinds import min_updates
from flcore.rules.named import resolve_rule
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
    "digits_file",
    "dirichlet_balanced",
    "keep_freed_memory",
    "min_updates",
    "parse_content",
    "resolve_rule",
    "serve",
    "decode_spec",
    "WireFormat",
]
