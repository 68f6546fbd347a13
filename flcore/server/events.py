"""Events of a running server, passed to observers. Observers do not change the run."""

from collections.abc import Callable
from dataclasses import dataclass

from flcore.server.history import RoundRecord


@dataclass(frozen=True, slots=True)
class ClientJoined:
    """A client has connected. `connected` is the number of connected clients."""

    client: str
    connected: int


@dataclass(frozen=True, slots=True)
class ClientLeft:
    """A client has disconnected. `connected` is the number of connected clients."""

    client: str
    connected: int


@dataclass(frozen=True, slots=True)
class JoinRefused:
    """A client was not admitted."""

    client: str
    reason: str


@dataclass(frozen=True, slots=True)
class TaskSent:
    """An attempt at a task has opened: its assignments are sent to `client_count` clients."""

    task: str
    round: int
    client_count: int


@dataclass(frozen=True, slots=True)
class TaskAnswered:
    """A client's answer is committed."""

    task: str
    client: str


@dataclass(frozen=True, slots=True)
class ClientFailed:
    """A client failed in an attempt at a task."""

    task: str
    client: str
    reason: str


@dataclass(frozen=True, slots=True)
class InvalidMetrics:
    """Metrics of a client's answer were dropped; the rest counts. `metrics` has the reason of each, by name."""

    task: str
    client: str
    metrics: dict[str, str]


@dataclass(frozen=True, slots=True)
class WaitingForClients:
    """Too few clients are connected, and the server waits.

    Attributes:
        connected: The number of connected clients.
        needed: The number that must be connected.
        missing: The names of the expected clients that are not connected. Empty if the contract has a number of
            clients, because then the server does not know the names of clients that never connected.
        timeout_s: The longest wait in seconds. None: no limit.
    """

    connected: int
    needed: int
    missing: tuple[str, ...]
    timeout_s: float | None


@dataclass(frozen=True, slots=True)
class TaskRetried:
    """A task is below its quorum: after `delay_s` seconds the `missing` clients are retried.

    `attempt` is the number of this retry, from 1, and `attempts` the highest number of retries.
    """

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
    """A round is skipped: the model stays as it was."""

    task: str
    round: int
    reason: str


@dataclass(frozen=True, slots=True)
class NoBestModel:
    """The round has no best model, because no client reported the metric of `server.best`."""

    metric: str
    reported: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class BytesTransferred:
    """Bytes of pieces were sent to a client or received from one."""

    sent: int
    received: int


@dataclass(frozen=True, slots=True)
class RoundFinished:
    """A round has finished, and its record is written."""

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
    """Ignore an event."""
