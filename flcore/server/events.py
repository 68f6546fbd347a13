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
class OddMetrics:
    """Metrics of a client's answer that are left out, and why; its weights count."""

    task: str
    client: str
    metrics: dict[str, str]


@dataclass(frozen=True, slots=True)
class Waiting:
    """Too few clients are connected: the server waits until `needed` of them are, up to `timeout_s` seconds.

    `timeout_s` None is for ever. `missing` are those whose names are known.
    """

    connected: int
    needed: int
    missing: tuple[str, ...]
    timeout_s: float | None


@dataclass(frozen=True, slots=True)
class AskingAgain:
    """A task is below its quorum: after `pause_s` seconds the `missing` clients are asked once more."""

    task: str
    round: int
    answers: int
    quorum: int
    missing: tuple[str, ...]
    attempt: int
    attempts: int
    pause_s: float


@dataclass(frozen=True, slots=True)
class Skipped:
    """A round leaves the model as it is."""

    task: str
    round: int
    reason: str


@dataclass(frozen=True, slots=True)
class NoBest:
    """No best model in this round: the metric of `server.best` is not among those that clients reported."""

    metric: str
    reported: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Moved:
    """Bytes of pieces went out to a client, or came in."""

    sent: int
    received: int


@dataclass(frozen=True, slots=True)
class RoundDone:
    """A round is over."""

    record: RoundRecord


Event = (
    Joined
    | Departed
    | TurnedAway
    | Asked
    | Answered
    | Failed
    | OddMetrics
    | Waiting
    | AskingAgain
    | Skipped
    | NoBest
    | Moved
    | RoundDone
)
Observer = Callable[[Event], None]
"""Called from any thread; must return at once and not raise."""


def unobserved(_: Event) -> None:
    """Watch nothing."""
