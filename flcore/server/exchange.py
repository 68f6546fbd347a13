"""One task asked of the sampled clients, with all that hangs on it: the orders sent, the answers on their way in.

An exchange is known by its number, which is also the number of its clients' orders.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from flcore_transport import Order, SharedPieces

from flcore.aggregation.aggregator import Aggregator
from flcore.errors import QuorumError
from flcore.model.chunks import GlobalModel
from flcore.server.history import Participation, weighted_average
from flcore.server.intake import Intake
from flcore.server.round import Round


@dataclass(eq=False)
class Traffic:
    """Bytes of pieces that have gone out and come in."""

    sent: int = 0
    received: int = 0


@dataclass(eq=False)
class Exchange:
    """A round of one task.

    `aggregator` is None where answers are metrics alone. `model` is what the clients read, all of them the same copy,
    and None once the round after this one has closed. `reading` has the time of their last piece for those that are at
    it.
    """

    task: str
    returns: str
    round: Round
    orders: Mapping[str, Order]
    model: GlobalModel | None
    aggregator: Aggregator | None
    intakes: dict[str, Intake] = field(default_factory=dict)
    answers: dict[str, Participation] = field(default_factory=dict)
    shared: SharedPieces = field(default_factory=SharedPieces)
    reading: dict[str, float] = field(default_factory=dict)
    traffic: Traffic = field(default_factory=Traffic)

    @property
    def metrics(self) -> dict[str, float]:
        """The clients' metrics, averaged by weight, in the order of the clients' names."""
        return weighted_average(
            (self.answers[name].metrics, self.answers[name].weight) for name in sorted(self.answers)
        )

    def retire(self) -> None:
        """Let go of the model."""
        self.model = None
        self.shared.clear()

    def drop(self, client: str) -> None:
        """Let go of what a client has sent and will not finish, even where a stalled stream still holds its intake."""
        intake = self.intakes.pop(client, None)
        if intake is not None and intake.staged is not None:
            intake.staged.drop()

    def require_quorum(self) -> None:
        """Raise `QuorumError`, with every client's reason, unless enough answers are in."""
        if self.round.has_quorum:
            return
        reasons = "; ".join(f"{client}: {reason}" for client, reason in sorted(self.round.failed.items()))
        raise QuorumError(
            f"task {self.task!r}: {len(self.answers)} of {len(self.round.clients)} answers are in, "
            f"quorum {self.round.rules.quorum}: {reasons}"
        )
