"""Events of a running server, passed to observers. Observers do not change the run."""

from collections.abc import Callable
from dataclasses import dataclass

from flcore.server.history import RoundRecord


@dataclass(frozen=True, slots=True)
class RunStarted:
    """A run begins. Digests are in hexadecimal."""

    run: str
    job: str
    contract_fingerprint: str
    code_digest: str
    version: str


@dataclass(frozen=True, slots=True)
class RunEnded:
    """A run is over: its clients have been told the reason."""

    reason: str
    failed: bool


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
class ClientRevoked:
    """A client's session was ended because its certificate was revoked or has expired."""

    client: str
    certificate_fingerprint: str
    reason: str


@dataclass(frozen=True, slots=True)
class TaskSent:
    """An attempt at a task has opened: its assignments are sent to `client_count` clients."""

    task: str
    round: int
    client_count: int


@dataclass(frozen=True, slots=True)
class TaskAnswered:
    """A client's answer is committed: its client gets a receipt.

    A receipt that was lost and is sent again is not an event.

    Attributes:
        task: The name of the task.
        client: The client's name.
        round: The round's number.
        assignment_id: The id of the assignment that it answers.
        weight: The answer's weight.
        received_bytes: Bytes of its pieces on the wire.
        content_digest: The SHA-256 of the message that announced it: kind, weight, metrics, the tensors' fingerprint.
    """

    task: str
    client: str
    round: int
    assignment_id: int
    weight: float
    received_bytes: int
    content_digest: str


@dataclass(frozen=True, slots=True)
class AnswerRefused:
    """The server refused a client's answer, or a piece of it.

    Attributes:
        task: The name of the task; empty if the assignment is not open.
        client: The client's name.
        round: The round's number; 0 if the assignment is not open.
        assignment_id: The number that the client gave for its assignment.
        kind: The kind of refusal, such as "out-of-bounds" (see `flcore.errors`).
        reason: The reason in words.
    """

    task: str
    client: str
    round: int
    assignment_id: int
    kind: str
    reason: str


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
class ModelPublished:
    """A model has replaced the last one in the run's directory.

    Attributes:
        round: The round's number; 0 if it is the initial model of a workflow that published none.
        file: The name of its file, or of the index of its files.
        is_best: Whether it is also the best one so far.
        model_fingerprint: The fingerprint of its tensors' names, shapes and dtypes.
        tensor_bytes: The size of its tensors.
        file_digest: The SHA-256 of the file; None for a file that is large, because it would have to be read again.
    """

    round: int
    file: str
    is_best: bool
    model_fingerprint: str
    tensor_bytes: int
    file_digest: str | None


@dataclass(frozen=True, slots=True)
class RoundFinished:
    """A round has finished, and its record is written."""

    record: RoundRecord


Event = (
    RunStarted
    | RunEnded
    | ClientJoined
    | ClientLeft
    | JoinRefused
    | ClientRevoked
    | TaskSent
    | TaskAnswered
    | AnswerRefused
    | ClientFailed
    | InvalidMetrics
    | WaitingForClients
    | TaskRetried
    | RoundSkipped
    | NoBestModel
    | BytesTransferred
    | ModelPublished
    | RoundFinished
)
Observer = Callable[[Event], None]
"""Called from any thread; must return at once and not raise."""


def ignore_events(_: Event) -> None:
    """Ignore an event."""


def notify_all(*observers: Observer) -> Observer:
    """Return an observer that passes each event to several, in order."""

    def observe(event: Event) -> None:
        for each in observers:
            each(event)

    return observe
