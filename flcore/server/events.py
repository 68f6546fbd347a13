"""What can be seen of a running server: events, handed to whoever watches. Watching changes nothing."""

from collections.abc import Callable
from dataclasses import dataclass

from flcore.server.history import RoundRecord


@dataclass(frozen=True, slots=True)
class Joined:
    """A client is connected; `connected` counts them all."""

    client: str
    connected: int


@dataclass(frozen=True, slots=True)
class Departed:
    """A client's connection is gone."""

    client: str
    connected: int


@dataclass(frozen=True, slots=True)
class TurnedAway:
    """A client was not let in."""

    client: str
    reason: str


@dataclass(frozen=True, slots=True)
class Asked:
    """A task was sent to so many clients."""

    task: str
    round: int
    clients: int


@dataclass(frozen=True, slots=True)
class Answered:
    """A client's answer is in, whole."""

    task: str
    client: str


@dataclass(frozen=True, slots=True)
class Failed:
    """A client failed in a task."""

    task: str
    client: str
    reason: str


@dataclass(frozen=True, slots=True)
class Moved:
    """Bytes of pieces went out to a client, or came in."""

    sent: int
    received: int


@dataclass(frozen=True, slots=True)
class RoundDone:
    """A round is over."""

    record: RoundRecord


Event = Joined | Departed | TurnedAway | Asked | Answered | Failed | Moved | RoundDone
Observer = Callable[[Event], None]
"""Called from any thread; must return at once and not raise."""


def unobserved(_: Event) -> None:
    """Watch nothing."""
