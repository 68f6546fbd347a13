"""Events of a running server, passed to observers. Observers do not change the run."""

from collections.abc import Callable
from dataclasses import dataclass

from flcore.server.history import RoundRecord


@dataclass(frozen=True, slots=True)
class ClientJoined:
    """A client is connected; `connected` counts them all."""

    client: str
    connected: int


@dataclass(frozen=True, slots=True)
class ClientLeft:
    """A client's connection is gone."""

    client: str
    connected: int


@dataclass(frozen=True, slots=True)
class JoinRefused:
    """A client was not let in."""

    client: str
    reason: str


@dataclass(frozen=True, slots=True)
class TaskSent:
    """A task was sent to so many clients."""

    task: str
    round: int
    clients: int


@dataclass(frozen=True, slots=True)
class TaskAnswered:
    """A client's answer is in, whole."""

    task: str
    client: str


@dataclass(frozen=True, slots=True)
class ClientFailed:
    """A client failed in a task."""

    task: str
    client: str
    reason: str


@dataclass(frozen=True, slots=True)
class InvalidMetrics:
    """Metrics of a client's answer that are left out, and why; its weights count."""

    task: str
    client: str
    metrics: dict[str, str]


@dataclass(frozen=True, slots=True)
class WaitingForClients:
    """Too few clients are connected: the server waits until `needed` of them are, up to `timeout_s` seconds.

    `timeout_s` None is for ever. `missing` are those whose names are known.
    """

    connected: int
    needed: int
    missing: tuple[str, ...]
    timeout_s: float | None


@dataclass(frozen=True, slots=True)
class TaskRetried:
    """A task is below its quorum: after `delay_s` seconds the `missing` clients are asked once more."""

    task: str
    round: int
    answers: int
    quorum: int
    missing: tuple[str, ...]
    attempt: int
    attempts: int
    delay_s: float


@dataclass(frozen=True, slots=True)
class RoundSkipped:
    """A round leaves the model as it is."""

    task: str
    round: int
    reason: str


@dataclass(frozen=True, slots=True)
class NoBestModel:
    """No best model in this round: the metric of `server.best` is not among those that clients reported."""

    metric: str
    reported: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class BytesTransferred:
    """Bytes of pieces went out to a client, or came in."""

    sent: int
    received: int


@dataclass(frozen=True, slots=True)
class RoundFinished:
    """A round is over."""

    record: RoundRecord


Event = (
    ClientJoined
    | ClientLeft
    | JoinRefused
    | TaskSent
    | TaskAnswered
    | ClientFailed
    | InvalidMetrics
    | WaitingForClients
    | TaskRetried
    | RoundSkipped
    | NoBestModel
    | BytesTransferred
    | RoundFinished
)
Observer = Callable[[Event], None]
"""Called from any thread; must return at once and not raise."""


def ignore_events(_: Event) -> None:
    """Watch nothing."""
