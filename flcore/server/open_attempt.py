"""An open attempt: its state machine, its assignments, the model to download, the aggregator of its updates."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from flcore_transport import ClientLink, PieceCache, TaskAssignment

from flcore.aggregation.aggregator import Aggregator
from flcore.errors import QuorumError
from flcore.model.chunks import GlobalModel
from flcore.server.history import Participation, weighted_average
from flcore.server.task_attempt import TaskAttempt
from flcore.server.timers import NEVER

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
        wakes_at: The time at which the waiting thread will wake; `NEVER` while it does not sleep.
        round: The number of the round that the task belongs to.
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
    round: int = 0

    @property
    def answers(self) -> dict[str, Participation]:
        """The committed answers, by client."""
        return {client: upload.participation for client, upload in self.attempt.answers.items()}

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
