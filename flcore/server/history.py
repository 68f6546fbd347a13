"""What is kept of a run: one record per round, as a JSON line."""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field


@dataclass(frozen=True)
class Participation:
    """One client's part in a round: its weight, its metrics, bytes of its update, seconds from task to update."""

    weight: float
    metrics: dict[str, float]
    bytes: int
    seconds: float


@dataclass
class RoundRecord:
    """One round. `train` and `validate` are the clients' metrics, averaged by weight; seconds are per phase.

    `failed` gives the reason for each sampled client without an update, by task; `odd_metrics` what was wrong with
    metrics that were left out, by client. `asked_again` is how often a task was, for its quorum; `skipped` why the
    round left the model as it was.
    """

    round: int
    sampled: tuple[str, ...] = ()
    updates: dict[str, Participation] = field(default_factory=dict)
    failed: dict[str, dict[str, str]] = field(default_factory=dict)
    train: dict[str, float] = field(default_factory=dict)
    validate: dict[str, float] = field(default_factory=dict)
    bytes_sent: int = 0
    bytes_received: int = 0
    seconds: dict[str, float] = field(default_factory=dict)
    odd_metrics: dict[str, dict[str, str]] = field(default_factory=dict)
    asked_again: int = 0
    skipped: str = ""
    is_best: bool = False

    def to_json(self) -> str:
        """Return the record as one line of JSON."""
        return json.dumps(asdict(self))


def weighted_average(parts: Iterable[tuple[dict[str, float], float]]) -> dict[str, float]:
    """Return the average of each metric by weight, over those parts that have it.

    >>> weighted_average([({"loss": 1.0}, 1.0), ({"loss": 2.0, "accuracy": 0.5}, 3.0)])
    {'loss': 1.75, 'accuracy': 0.5}
    """
    sums: dict[str, tuple[float, float]] = {}
    for metrics, weight in parts:
        for name, value in metrics.items():
            total, share = sums.get(name, (0.0, 0.0))
            sums[name] = (total + weight * value, share + weight)
    return {name: total / share for name, (total, share) in sums.items()}
