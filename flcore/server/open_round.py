"""The state of an open round: its assignments, the model to download, the aggregator of its updates."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from flcore_transport import ClientLink, PieceCache, TaskAssignment

from flcore.aggregation.aggregator import Aggregator
from flcore.errors import QuorumError
from flcore.model.chunks import GlobalModel
from flcore.server.history import Participation, weighted_average
from flcore.server.task_round import TaskRound
from flcore.server.timers import NEVER

MAX_CLIENTS_NAMED = 10
"""How many clients an error names; the others are counted by their reason."""


@dataclass(eq=False)
class OpenRound:
    """A round of one task. `state` changes under the lock of the `RoundRegistry` that it belongs to, and nowhere else.

    `aggregator` is None where answers are metrics alone. `model` is what the clients read, all of them the same copy,
    and None once the round has closed. `links` has each client's last stream. `round` is the number of the round that
    the task belongs to.
    """

    task: str
    returns: str
    state: TaskRound
    assignments: Mapping[str, TaskAssignment]
    model: GlobalModel | None
    aggregator: Aggregator | None
    links: dict[str, ClientLink] = field(default_factory=dict)
    piece_cache: PieceCache = field(default_factory=PieceCache)
    wakes_at: float = NEVER
    round: int = 0

    @property
    def answers(self) -> dict[str, Participation]:
        """The answers that count, by client."""
        return {client: answer.participation for client, answer in self.state.answers.items()}

    def release_model(self) -> None:
        """Free the model. Downloads that still read it are refused."""
        self.model = None
        self.piece_cache.clear()


def average_metrics(answers: Mapping[str, Participation]) -> dict[str, float]:
    """Return the clients' metrics, averaged by weight, summed in the order of the clients' names."""
    return weighted_average((answers[name].metrics, answers[name].weight) for name in sorted(answers))


def quorum_error(task: str, quorum: int, clients: Sequence[str], failed: Mapping[str, str]) -> QuorumError:
    """Return the error of a task that too few of `clients` answered; `failed` has the reason for each of the others."""
    named = sorted(failed)[:MAX_CLIENTS_NAMED]
    reasons = [f"{client}: {failed[client]}" for client in named]
    others = Counter(failed[client] for client in failed if client not in named)
    reasons += [f"{count} more: {reason}" for reason, count in others.most_common(MAX_CLIENTS_NAMED)]
    return QuorumError(
        f"task {task!r}: {len(clients) - len(failed)} of {len(clients)} answers are in, quorum {quorum}",
        reasons="; ".join(reasons),
    )
