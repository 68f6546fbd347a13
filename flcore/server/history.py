"""The history of a run: one record per round, as a JSON line."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from flcore.number_text import bytes_text, metrics_text
from flcore.rules.effect import RuleEffect

"""The most metrics of a round that are shown."""


@dataclass(frozen=True)
class Participation:
    """One client's part in a round.

    Attributes:
        weight: The update's weight.
        metrics: The client's metrics, by name.
        bytes: Bytes of the update on the wire.
        seconds: Seconds from the opening of the attempt to the commit of the answer.
    """

    weight: float
    metrics: dict[str, float]
    bytes: int
    seconds: float


@dataclass
class RoundRecord:
    """The record of one round.

    Attributes:
        round: The round's number, from 1.
        sampled: The names of the sampled clients.
        updates: The participation of each client whose update counts, by client.
        failed: By task and client, the reason why a client has no answer that counts.
        train: The clients' training metrics, averaged by weight.
        validate: The clients' validation metrics, averaged by weight.
        bytes_sent: Bytes that the server sent.
        bytes_received: Bytes that the server received.
        seconds: Duration in seconds by phase; the phase "round" is the whole round.
        odd_metrics: By client and metric, the reason why the metric was dropped.
        asked_again: The number of retries of tasks below the quorum.
        skipped: The reason why the round left the model unchanged, else empty.
        capped_weights: The weights with which updates counted that `bounds.max_share` has capped, by client.
        rule_effects: What the rule did to updates that it excluded, clipped or scaled, by client.
        checkpoint: The file with the round's model that `server.checkpoint_every` keeps, else empty.
        is_best: Whether the round's model is the best one so far.
        stopped: The reason why the run ended early with this round, else empty.
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
    capped_weights: dict[str, float] = field(default_factory=dict)
    rule_effects: dict[str, RuleEffect] = field(default_factory=dict)
    checkpoint: str = ""
    stopped: str = ""

    def __repr__(self) -> str:
        return f"<RoundRecord {self.round}: {self.summary()}>"

    def summary(self) -> str:
        """Return the round in one line: clients, metrics, bytes and seconds."""
        metrics = [metrics_text(self.metrics)] * bool(self.metrics)
        traffic = bytes_text(self.bytes_sent + self.bytes_received)
        seconds = [f"{self.seconds['round']:.2f} s"] if "round" in self.seconds else []
        state = ["skipped"] * bool(self.skipped) + ["the best so far"] * self.is_best
        clients = f"{len(self.updates)} of {len(self.sampled)} clients"
        return ", ".join([clients, *metrics, traffic, *seconds, *state])

    @property
    def metrics(self) -> dict[str, float]:
        """The averages of training and validation together, by name."""
        return {**self.train, **self.validate}

    @property
    def failed_clients(self) -> frozenset[str]:
        """The clients without an answer to one of the round's tasks."""
        return frozenset(client for reasons in self.failed.values() for client in reasons)

    def to_json(self) -> str:
        """Return the record as one line of JSON."""
        # Not `asdict`: it copies, and takes three times as long as the encoding, several times a round.
        updates = {client: vars(each) for client, each in self.updates.items()}
        effects = {client: vars(each) for client, each in self.rule_effects.items()}
        return json.dumps(vars(self) | {"updates": updates, "rule_effects": effects})

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Return the record that `to_json` has written."""
        return cls.from_fields(json.loads(text))

    @classmethod
    def from_fields(cls, fields: Mapping[str, Any]) -> Self:
        """Return the record with these keys and values, as JSON has them."""
        updates = {client: Participation(**each) for client, each in fields["updates"].items()}
        effects = {client: RuleEffect(**each) for client, each in fields.get("rule_effects", {}).items()}
        parts = {"sampled": tuple(fields["sampled"]), "updates": updates, "rule_effects": effects}
        return cls(**{**fields, **parts})

    def restore(self, text: str) -> None:
        """Take the content of the record that `to_json` has written."""
        vars(self).update(vars(self.from_json(text)))


def weighted_average(parts: Iterable[tuple[dict[str, float], float]]) -> dict[str, float]:
    """Return the average of each metric by weight, over the parts that have the metric.

    >>> weighted_average([({"loss": 1.0}, 1.0), ({"loss": 2.0, "accuracy": 0.5}, 3.0)])
    {'loss': 1.75, 'accuracy': 0.5}
    """
    sums: dict[str, tuple[float, float]] = {}
    for metrics, weight in parts:
        for name, value in metrics.items():
            total, total_weight = sums.get(name, (0.0, 0.0))
            sums[name] = (total + weight * value, total_weight + weight)
    return {name: total / total_weight for name, (total, total_weight) in sums.items()}
