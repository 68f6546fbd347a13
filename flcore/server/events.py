"""Events of a running server, passed to observers. Observers do not change the run."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from flcore.progress import TaskProgress
from flcore.server.history import RoundRecord
from flcore.server.transfer_events import TransferEvent


@dataclass(frozen=True, slots=True)
class RunStarted:
    """A run begins. Digests are in hexadecimal."""

    run: str
    job: str
    contract_fingerprint: str
    code_digest: str
    version: str


@dataclass(frozen=True, slots=True)
class RunContinued:
    """A run that was not over goes on: `rounds` of its `total_rounds` rounds are over."""

    run: str
    rounds: int
    total_rounds: int


@dataclass(frozen=True, slots=True)
class HistoryRestored:
    """A run that goes on has these records of its earlier rounds."""

    records: tuple[RoundRecord, ...]


@dataclass(frozen=True, slots=True)
class StorageOpened:
    """The server has opened the storage of updates and models.

    Attributes:
        budget_bytes: The memory budget of the server's payloads.
        staging_budget_bytes: The part of it for staged updates.
        staged_bytes: Returns the bytes of staged updates in memory. May be called from any thread, until `RunEnded`.
        directory: The run's directory; None without one.
    """

    budget_bytes: int
    staging_budget_bytes: int
    staged_bytes: Callable[[], int]
    directory: Path | None


RunEnd = Literal["done", "failed", "aborted", "stopped", "interrupted"]
"""How a run has ended. A run that is "stopped" or "interrupted" (by a disk error) goes on when it is started again."""


@dataclass(frozen=True, slots=True)
class RunEnding:
    """The server begins to end the run: the connections that end from now on are not lost."""


@dataclass(frozen=True, slots=True)
class RunEnded:
    """A run is over: its clients have been told the reason.

    Attributes:
        reason: The reason that the clients were told.
        failed: Whether the run has ended without its result.
        end: How the run has ended.
        cause: The error that ended it, for the server's own eyes; empty if none did.
    """

    reason: str
    failed: bool
    end: RunEnd = "done"
    cause: str = ""


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
class CallRefused:
    """A call was refused before the job saw it, for its certificate or its session's secret.

    Attributes:
        client: The client's name; empty if its certificate names none, or over plaintext.
        certificate_fingerprint: The SHA-256 of its certificate; empty over plaintext.
        kind: The kind of refusal, such as "revoked" or "unknown-session".
        reason: The reason in words.
    """

    client: str
    certificate_fingerprint: str
    kind: str
    reason: str


@dataclass(frozen=True, slots=True)
class ClientRevoked:
    """A client's session was ended because its certificate was revoked or has expired."""

    client: str
    certificate_fingerprint: str
    reason: str


@dataclass(frozen=True, slots=True)
class TaskSent:
    """An attempt at a task has opened: its assignments are sent to `client_count` clients.

    Attributes:
        task: The name of the task.
        round: The round's number.
        client_count: The number of clients.
        clients: The names of the clients.
        payload_id: The id of the model that they download. A client that has this model downloads nothing.
    """

    task: str
    round: int
    client_count: int
    clients: tuple[str, ...]
    payload_id: str


@dataclass(frozen=True, slots=True)
class UpdatesFolded:
    """The updates of these clients are in the round's total, and so in its model."""

    task: str
    round: int
    clients: tuple[str, ...]


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
    """A client failed in an attempt at a task: it gives no answer in it."""

    task: str
    client: str
    reason: str
    round: int = 0


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
class WaitBegan:
    """The workflow waits: for clients to connect, for their answers, or before a retry.

    Of the job's code its rule alone may run meanwhile (`RuleBegan`).
    """


@dataclass(frozen=True, slots=True)
class WaitEnded:
    """The workflow goes on."""


@dataclass(frozen=True, slots=True)
class RuleBegan:
    """The job's own rule is asked about the update that a client has announced. A bundled rule makes no such event."""

    client: str


@dataclass(frozen=True, slots=True)
class RuleEnded:
    """The rule has answered, or has raised an error."""

    client: str


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
class StoppedEarly:
    """The run ends with this round, before its last one: a target is reached, or the metric has not improved."""

    round: int
    reason: str


@dataclass(frozen=True, slots=True)
class NoBestModel:
    """The round has no best model, because no client reported the metric of `server.best`."""

    metric: str
    reported: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class BytesTransferred:
    """Bytes of pieces were sent to `client` or received from it."""

    sent: int
    received: int
    client: str = ""


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
    | RunContinued
    | HistoryRestored
    | StorageOpened
    | RunEnding
    | RunEnded
    | ClientJoined
    | ClientLeft
    | JoinRefused
    | CallRefused
    | ClientRevoked
    | TaskSent
    | TransferEvent
    | UpdatesFolded
    | TaskAnswered
    | AnswerRefused
    | ClientFailed
    | InvalidMetrics
    | WaitingForClients
    | WaitBegan
    | WaitEnded
    | RuleBegan
    | RuleEnded
    | TaskRetried
    | RoundSkipped
    | StoppedEarly
    | NoBestModel
    | BytesTransferred
    | ModelPublished
    | RoundFinished
    | TaskProgress
)
"""What happens in a run. `TaskProgress` is an event of `flcore.run` alone, where clients are on this machine."""

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
