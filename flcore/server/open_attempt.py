"""An open attempt: its state machine, its assignments, the model to download, the aggregator of its updates."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from flcore_transport import ClientLink, PieceCache, TaskAssignment

from flcore.aggregation.aggregator import Aggregator
from flcore.errors import QuorumError
from flcore.model.chunks import GlobalModel
from flcore.server.call_log import Call, CallLog
from flcore.server.history import Participation, weighted_average
from flcore.server.run_state import RecordedAnswer, RecordedReceipt
from flcore.server.task_attempt import TaskAttempt
from flcore.server.timers import NEVER

if TYPE_CHECKING:
    from flcore.server.uploads import PendingUpload

MAX_SLEEP_S = 1.0
"""The longest sleep of the thread that waits for an attempt. It bounds the time in which a suspension is noticed."""

MAX_WAKE_DELAY_S = 0.5
"""A thread that wakes later than this was suspended with the server. Clients are then given the lost time again."""

MAX_CLIENTS_NAMED = 10
"""The number of clients that an error names. The other clients are counted by reason."""


@dataclass(eq=False)
class OpenAttempt:
    """An attempt at a task, with the objects that its clients' calls use.

    `attempt` and `links` change only under the lock of the `FederationState` that owns this object.

    Attributes:
        task: The name of the task.
        returns: The kind of answers: "weights", "delta" or "metrics".
        attempt: The state machine.
        assignments: The assignment of each client.
        model: The model that clients download: one copy for all of them. None once the attempt has closed.
        aggregator: The destination of the updates. None if answers are metrics alone.
        links: Each client's newest link, kept after it has disconnected: its transfers may still have to be ended.
        piece_cache: Encoded pieces of the model, shared by clients that download at the same time.
        wakes_at: The time at which the waiting thread will wake, or while it is awake, by which it sleeps again.
        actions_under_way: Actions that are being performed. Updates that are being discarded hold memory and disk
            space yet, and a failure is being reported.
        round: The number of the round that the task belongs to.
        call: The workflow's call that asks for the task. It records the answers.
    """

    task: str
    returns: str
    attempt: TaskAttempt
    assignments: Mapping[str, TaskAssignment]
    model: GlobalModel | None
    aggregator: Aggregator | None
    links: dict[str, ClientLink] = field(default_factory=dict)
    piece_cache: PieceCache = field(default_factory=PieceCache)
    wakes_at: float = NEVER
    actions_under_way: int = 0
    round: int = 0
    call: Call = field(default_factory=lambda: CallLog().begin(0, "", None))

    @property
    def answers(self) -> dict[str, Participation]:
        """The committed answers, by client."""
        return {client: upload.participation for client, upload in self.attempt.answers.items()}

    def compensate_suspension(self, now: float) -> None:
        """If the waiting thread should have woken long ago, the process was suspended: move all deadlines.

        Any thread may be the first to run then. Each event calls this first, so no deadline fails a client.
        """
        late_s = now - self.wakes_at
        if late_s > MAX_WAKE_DELAY_S:
            self.attempt.pause(late_s)
            self.wakes_at = now + MAX_SLEEP_S

    def commit_answer(self, upload: "PendingUpload", participation: Participation) -> None:
        """Commit an answer: its update to the disk, then its record, then the update to the aggregator.

        In this order a server that dies in between has the update if it has the record, and counts it once.

        Raises:
            UpdateError: The update is incomplete, or the aggregator does not take it.
            StagingError: The disk does not take the update.
            RecordError: The answer cannot be recorded.
        """
        client, staged, invalid = upload.client, upload.staged, upload.invalid_metrics
        receipt = RecordedReceipt(self.attempt.assignment_id, self.assignments[client].token, upload.key)
        if self.aggregator is None or staged is None:
            self.call.add_answer(RecordedAnswer(client, participation, invalid), receipt)
            return
        staged.require_complete()
        try:
            staged.seal()
            self.call.add_answer(RecordedAnswer(client, participation, invalid, staged.directory), receipt)
        except BaseException:
            staged.release_files()  # the disk may be full: the update must not hold space that its next upload needs
            raise
        try:
            self.aggregator.commit(staged)
        except BaseException:
            self.call.remove_answer(client)
            staged.release_files()
            raise

    def free_model(self) -> None:
        """Free the model. Downloads that still read it are refused."""
        self.model = None
        self.piece_cache.clear()


def average_metrics(answers: Mapping[str, Participation]) -> dict[str, float]:
    """Return the clients' metrics, averaged by weight.

    The sum runs in the order of the clients' names, so that the order of arrival does not change a bit of it.
    """
    return weighted_average((answers[name].metrics, answers[name].weight) for name in sorted(answers))


def quorum_error(task: str, quorum: int, clients: Sequence[str], failed: Mapping[str, str]) -> QuorumError:
    """Return the error of a task that too few of `clients` answered. `failed` has the reasons of the others."""
    named = sorted(failed)[:MAX_CLIENTS_NAMED]
    reasons = [f"{client}: {failed[client]}" for client in named]
    other_reasons = Counter(failed[client] for client in failed if client not in named)
    reasons += [f"{count} more: {reason}" for reason, count in other_reasons.most_common(MAX_CLIENTS_NAMED)]
    return QuorumError(
        f"task {task!r}: {len(clients) - len(failed)} of {len(clients)} answers are in, quorum {quorum}",
        reasons="; ".join(reasons),
    )
