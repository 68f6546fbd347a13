"""Who took part in which round, with which share, and why a client was left out."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from statistics import median

from flcore.reports.reported_run import ReportedRun
from flcore.server.history import RoundRecord

NUMBER = re.compile(r"\d+(\.\d+)?([eE][+-]?\d+)?")


class Part(StrEnum):
    """A client's part in a round."""

    COUNTED = "counted"
    UNVALIDATED = "counted, another task failed"
    REFUSED = "refused"
    FAILED = "failed"
    SKIPPED = "answered in a skipped round"
    UNUSED = "no answer"
    ABSENT = "not sampled"


@dataclass(frozen=True)
class LeftOut:
    """One reason why a client's answer to a task did not count, and the rounds in which it was the reason.

    Attributes:
        client: The client.
        task: The task.
        kind: The kind of refusal, such as "out-of-bounds"; empty for another failure.
        reason: The reason in words; of the last round, if they differ in numbers.
        rounds: The rounds.
    """

    client: str
    task: str
    kind: str
    reason: str
    rounds: Sequence[int]

    @property
    def how(self) -> str:
        """Whether it failed or was refused, and the kind of refusal."""
        return f"refused: {self.kind}" if self.kind else "failed"


@dataclass
class ClientParticipation:
    """A client over all rounds.

    Attributes:
        parts: Its part in each round of the history, in order.
        weights: The weights with which its updates counted.
        shares: Its shares in the total weights of the rounds in which it counted, each between 0 and 1.
        seconds: The seconds until each of the updates that counted was committed.
        bytes: Bytes of its updates on the wire, in all rounds; also those of skipped rounds.
    """

    parts: list[Part] = field(default_factory=list)
    weights: list[float] = field(default_factory=list)
    shares: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    bytes: int = 0

    def count(self, *parts: Part) -> int:
        """Return the number of rounds with one of these parts."""
        return sum(self.parts.count(part) for part in parts)

    @property
    def counted(self) -> int:
        """The number of rounds in which an answer counted."""
        return self.count(Part.COUNTED, Part.UNVALIDATED)

    @property
    def median_weight(self) -> float | None:
        """The median of its weights. None: no update counted."""
        return median(self.weights) if self.weights else None

    @property
    def median_seconds(self) -> float | None:
        """The median of its seconds. None: no update counted."""
        return median(self.seconds) if self.seconds else None


def participation(run: ReportedRun) -> dict[str, ClientParticipation]:
    """Return each client's participation, by client in the order of names.

    Clients are those of the contract, of the history and of the audit log. Where a round has no updates, as in
    workflows without training, an answer to another task counts; the audit log has those.
    """
    history = run.history
    clients = {name: ClientParticipation() for name in sorted(_clients(run))}
    for record in history:
        weights = {name: _counted_weight(record, name, each.weight) for name, each in record.updates.items()}
        total, parts = sum(weights.values()), _parts(record, run)
        for name, client in clients.items():
            client.parts.append(parts.get(name, Part.ABSENT))
            update = record.updates.get(name)
            if update is None:
                continue
            client.bytes += update.bytes
            if not record.skipped:
                client.weights.append(weights[name])
                client.shares.append(weights[name] / total if total > 0 else 0.0)
                client.seconds.append(update.seconds)
    return clients


def _counted_weight(record: RoundRecord, client: str, weight: float) -> float:
    """Return the weight with which an update counted, after a cap and the rule."""
    capped, effect = record.capped_weights.get(client, weight), record.rule_effects.get(client)
    # What is excluded has the factor 0. Clipping changes an update, and not its weight.
    return capped if effect is None or effect.kind == "clipped" else capped * effect.factor


def left_out(run: ReportedRun) -> list[LeftOut]:
    """Return the reasons why answers did not count, the most frequent ones first.

    Reasons that differ in their numbers alone are one; its text is that of the last round.
    """
    rounds: dict[tuple[str, str, str, str], list[int]] = {}
    reasons: dict[tuple[str, str, str, str], str] = {}
    for record in run.history:
        for task, failed in record.failed.items():
            for client, reason in failed.items():
                kind = run.audit.refused.get((client, record.round, task), "")
                key = client, task, kind, without_numbers(reason)
                rounds.setdefault(key, []).append(record.round)
                reasons[key] = reason
    found = [LeftOut(*key[:3], reasons[key], numbers) for key, numbers in rounds.items()]
    return sorted(found, key=lambda each: (-len(each.rounds), each.client, each.task, each.rounds[0]))


def refused_clients(record: RoundRecord, run: ReportedRun) -> set[str]:
    """Return the clients of which an answer was refused in a round."""
    refused = run.audit.refused
    return {name for task, failed in record.failed.items() for name in failed if (name, record.round, task) in refused}


def without_numbers(reason: str) -> str:
    """Return a reason with a mark in place of each number.

    >>> without_numbers("element 0 is 1.5e9")
    'element # is #'
    """
    return NUMBER.sub("#", reason)


def _clients(run: ReportedRun) -> set[str]:
    contract_clients = (run.contract or {}).get("clients")
    named = contract_clients if isinstance(contract_clients, list) else []
    return {name for name in named if isinstance(name, str)} | set(run.audit.answered) | _in_history(run.history)


def _in_history(history: Iterable[RoundRecord]) -> set[str]:
    found: set[str] = set()
    for record in history:
        found.update(record.sampled, record.updates, *record.failed.values())
    return found


def _parts(record: RoundRecord, run: ReportedRun) -> dict[str, Part]:
    """Return the parts of the clients that were sampled, have answered or failed in a round."""
    parts = dict.fromkeys(record.sampled, Part.UNUSED)
    if not record.updates:
        parts |= {name: Part.COUNTED for name, rounds in run.audit.answered.items() if record.round in rounds}
    parts |= dict.fromkeys(record.updates, Part.SKIPPED if record.skipped else Part.COUNTED)
    for task, failed in record.failed.items():
        for client in failed:
            if client in record.updates:
                parts[client] = Part.SKIPPED if record.skipped else Part.UNVALIDATED
            elif (client, record.round, task) in run.audit.refused:
                parts[client] = Part.REFUSED
            elif parts.get(client) is not Part.REFUSED:
                parts[client] = Part.FAILED
    return parts


def spans(numbers: Sequence[int], limit: int = 8) -> str:
    """Return increasing numbers as spans, at most `limit` of them.

    >>> spans([3, 7, 8, 9]), spans([1, 3, 5, 7], 2)
    ('3, 7\u20139', '1, 3 and 2 more')
    """
    found = [f"{first}" if first == last else f"{first}\u2013{last}" for first, last, _ in _runs(numbers)]
    rest = sum(count for _, _, count in list(_runs(numbers))[limit:])
    return ", ".join(found[:limit]) + (f" and {rest} more" if rest else "")


def _runs(numbers: Sequence[int]) -> Iterator[tuple[int, int, int]]:
    """Yield the first, the last and the count of each run of consecutive numbers."""
    first = last = None
    for number in numbers:
        if first is not None and last is not None and number == last + 1:
            last = number
            continue
        if first is not None and last is not None:
            yield first, last, last - first + 1
        first = last = number
    if first is not None and last is not None:
        yield first, last, last - first + 1


def part_counts(clients: Mapping[str, ClientParticipation]) -> dict[Part, int]:
    """Return how many cells of the grid have each part."""
    counts = dict.fromkeys(Part, 0)
    for client in clients.values():
        for part in Part:
            counts[part] += client.parts.count(part)
    return counts
