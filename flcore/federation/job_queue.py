"""The queue: which of the waiting jobs may start, and what each of the others waits for. Pure: no I/O, no clock.

A job starts when a slot is free, its memory is free, and a quorum of its clients is connected. Among the jobs that may
start the earliest goes first. A job that may not does not hold up later ones.
"""

from collections.abc import Collection, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import NamedTuple

from flcore.text import counted

MAX_NAMES_SHOWN = 5
NOT_THERE = "; not there: "
"""What precedes the names of clients in the reason of a job that waits for them."""


@dataclass(frozen=True)
class WaitingJob:
    """A queued job.

    Attributes:
        number: The job's number; earlier jobs have lower ones.
        quorum: The clients that a round needs.
        invited: The names of the clients. None: a client of any name may take part.
        resident_bytes: Memory that the job takes beside its share of the budget.
    """

    number: int
    quorum: int
    invited: frozenset[str] | None = None
    resident_bytes: int = 0


@dataclass(frozen=True)
class Capacity:
    """What the server has for jobs.

    Attributes:
        slots: How many jobs run at a time at most.
        running: How many run.
        free_bytes: Memory for jobs, beside the budget, that no running job takes.
        connected: The clients that are connected.
        known: The clients that have ever connected.
    """

    slots: int
    running: int
    free_bytes: int
    connected: AbstractSet[str] = frozenset()
    known: AbstractSet[str] = frozenset()


class QueueDecision(NamedTuple):
    """The jobs that start now, in order; and by number, what each of the others waits for."""

    starts: list[int]
    reasons: dict[int, str]


def decide(waiting: Sequence[WaitingJob], capacity: Capacity) -> QueueDecision:
    """Decide which jobs start.

    Args:
        waiting: The queued jobs.
        capacity: What the server has.

    Example:
        >>> decide([WaitingJob(7, 1), WaitingJob(8, 1)], Capacity(1, 0, 0, {"north"}))
        QueueDecision(starts=[7], reasons={8: 'waits for a slot: 1 of 1 job runs'})
    """
    starts: list[int] = []
    blocked: dict[int, str] = {}
    free_bytes = capacity.free_bytes
    for job in sorted(waiting, key=lambda job: job.number):
        reason = _missing_clients(job, capacity)
        if not reason and capacity.running + len(starts) >= capacity.slots:
            reason = _SLOT
        if not reason and job.resident_bytes > free_bytes:
            reason = (
                f"waits for memory: it takes {job.resident_bytes >> 20}MiB beside the budget, and "
                f"{free_bytes >> 20}MiB are free until a running job ends"
            )
        if reason:
            blocked[job.number] = reason
        else:
            starts.append(job.number)
            free_bytes -= job.resident_bytes
    return QueueDecision(starts, _with_places(blocked, capacity.running + len(starts), capacity.slots))


_SLOT = "slot"


def _with_places(blocked: Mapping[int, str], running: int, slots: int) -> dict[int, str]:
    """Put the numbers of running jobs, and of those that go first, into the reasons of jobs that wait for a slot."""
    reasons, ahead = {}, 0
    for number, reason in blocked.items():
        if reason == _SLOT:
            first = f", and {ahead} {'goes' if ahead == 1 else 'go'} first" if ahead else ""
            reason = (
                f"waits for a slot: {running} of {counted(slots, 'job')} {'runs' if running == 1 else 'run'}{first}"
            )
            ahead += 1
        reasons[number] = reason
    return reasons


def _missing_clients(job: WaitingJob, capacity: Capacity) -> str:
    """Say which clients a job lacks; empty if its quorum is connected."""
    connected = capacity.connected if job.invited is None else capacity.connected & job.invited
    if len(connected) >= job.quorum:
        return ""
    text = f"waits for clients: {len(connected)} of the {job.quorum} that a round needs are connected"
    if job.invited is None:
        return text
    away = sorted(job.invited - connected)
    never = [client for client in away if client not in capacity.known]
    shown = [f"{client} has never joined" if client in never else client for client in _first(away)]
    return f"{text}{NOT_THERE}{', '.join(shown)}" + _rest(away)


def unknown_clients(
    clients: Sequence[str], quorum: int, known: Collection[str], without_role: Collection[str]
) -> list[str]:
    """Return a warning for each reason why clients of a new job are not there, nor may ever be.

    Args:
        clients: The clients that the job names.
        quorum: The clients that a round needs.
        known: The clients that have ever connected.
        without_role: Those of the job's clients that roles.toml has taken the role from.

    Example:
        >>> unknown_clients(["north", "nroth"], 1, {"north"}, ())
        ['1 of 2 clients has never joined this federation: nroth; a round needs 1: see clients and quorum in job.toml']
    """
    never = sorted(client for client in clients if client not in known and client not in without_role)
    barred = sorted(client for client in clients if client in without_role)
    found = [(never, "has never joined this federation", "have never joined this federation")]
    found += [(barred, "has the role none", "have the role none")]
    invited = counted(len(clients), "client")
    return [
        f"{len(names)} of {invited} {one if len(names) == 1 else more}: {', '.join(_first(names))}"
        f"{_rest(names)}; a round needs {quorum}: see clients and quorum in job.toml"
        for names, one, more in found
        if names
    ]


def unreachable_quorum(job: WaitingJob, refused: Mapping[str, str], known: Collection[str]) -> str:
    """Say why a job cannot reach its quorum any more, because sites have refused it; empty if it can.

    Args:
        job: The job.
        refused: The reason of each site that has refused.
        known: The clients that may take part, of a job that invites any.
    """
    clients = set(known) if job.invited is None else set(job.invited)
    left = clients - set(refused)
    if not refused or len(left) >= job.quorum:
        return ""
    reasons = [f"{client}: {refused[client]}" for client in _first(sorted(refused))]
    return (
        f"its quorum of {job.quorum} cannot be reached, as {len(refused)} of {counted(len(clients), 'site')} "
        f"{'refuses' if len(refused) == 1 else 'refuse'} the job: "
        f"{'; '.join(reasons)}{_rest(sorted(refused))}"
    )


def _first(names: Sequence[str]) -> Sequence[str]:
    return names[:MAX_NAMES_SHOWN]


def _rest(names: Sequence[str]) -> str:
    left = len(names) - MAX_NAMES_SHOWN
    return f" and {left} more" if left > 0 else ""
