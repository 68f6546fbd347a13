"""What the synthetic processes take from inside flcore, where it has no public name: the job's messages, the server."""

from flcore.job.messages import (
    JoinMessage,
    TaskMessage,
    UpdateMessage,
    WelcomeMessage,
    parse_message,
    spec_of,
)
from flcore.model.model import layout_of
from flcore.server.events import Asked, Event
from flcore.server.federation import Federation
from flcore.server.round import RoundRules
from flcore.server.serve import serve

__all__ = [
    "Asked",
    "Event",
    "Federation",
    "JoinMessage",
    "RoundRules",
    "TaskMessage",
    "UpdateMessage",
    "WelcomeMessage",
    "layout_of",
    "parse_message",
    "serve",
    "spec_of",
]
