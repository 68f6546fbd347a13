"""The state of a job at one moment, as values: for a terminal, a page, a file, metrics.

All moments are in seconds since the epoch, all rates in MB (10^6 bytes) per second. `to_json` returns values that JSON
has. `flcore.status.parse_status` takes them back, and refuses what the types below do not allow. Text of clients is
truncated and has no control characters, but is not escaped for HTML.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

from pydantic import ConfigDict, Field

from flcore.status.timeline import PhaseName

State = Literal["queued", "waiting", "running", "done", "failed", "aborted", "stopped", "interrupted"]
"""The state of a job:

- "queued": a standing federation has not started it yet.
- "waiting": too few clients are connected.
- "running", "done", "failed".
- "aborted": its lead or an admin has ended it.
- "stopped": its server was stopped. It goes on when the server is started again.
- "interrupted": the disk took no more. It goes on when the server is started again.
"""

JOIN_KIND, REVOKED_KIND = "join", "revoked"
"""The kinds of refusals whose events carry none: a refused join, and the end of a session by a revocation."""

RUNNING_STATES: tuple[State, ...] = ("waiting", "running")

Count = Annotated[int, Field(ge=0, lt=2**63)]
Amount = Annotated[float, Field(ge=0.0, le=1e15)]
"""A rate, or a number of seconds."""

Moment = Annotated[float, Field(ge=0.0, lt=253_402_300_800.0)]
"""Seconds since the epoch, before the year 10000."""

Share = Annotated[float, Field(ge=0.0, le=1.0)]
Text = Annotated[str, Field(max_length=4_000)]
"""A name or a reason. A reason of 300 characters is up to ten times as long with its control characters escaped."""


def _fields(status: Any) -> dict[str, Any]:
    """Return the fields of a status. Not `asdict`, which copies all that is below."""
    return {name: getattr(status, name) for name in status.__slots__}


class _Status:
    """A status that `parse_status` reads: of exactly these types, without other keys, NaN or infinity."""

    __slots__ = ()
    __pydantic_config__: ClassVar = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)

    def to_json(self) -> dict[str, Any]:
        """Return the values that JSON has."""
        return _fields(self)


@dataclass(frozen=True, slots=True)
class ClientStatus(_Status):
    """One client of a job.

    Attributes:
        name: The client's name.
        is_connected: Whether it is connected.
        phase: Where it is in its task; empty before its first one. It stays after the task until the next one.
        task: Its present or last task.
        round: The round of the task.
        phase_begin_s: When the phase began.
        progress: How much of its task is done, from 0 to 1; None if its code does not tell.
        bytes_sent: Bytes of pieces that the server has sent to it.
        bytes_received: Bytes of pieces that the server has received from it.
        megabytes_per_s: The rate of its present or last transfer; 0 before the first one.
        last_seen_s: When the server last heard of it; None if it never did.
        answers: How many of its answers count.
        failures: How many tasks ended without its answer.
        refusals: The number of refusals of its answers, calls and joins, by kind.
        last_reason: The reason of its last refusal or failure.
    """

    name: Text
    is_connected: bool = False
    phase: Literal[PhaseName, ""] = ""
    task: Text = ""
    round: Count = 0
    phase_begin_s: Moment | None = None
    progress: Share | None = None
    bytes_sent: Count = 0
    bytes_received: Count = 0
    megabytes_per_s: Amount = 0.0
    last_seen_s: Moment | None = None
    answers: Count = 0
    failures: Count = 0
    refusals: Mapping[Text, Count] = field(default_factory=dict)
    last_reason: Text = ""


@dataclass(frozen=True, slots=True)
class RoundStatus(_Status):
    """One round of a job.

    Attributes:
        round: The round's number.
        state: "running", "over", or "skipped": over, and the model stays as it was.
        begin_s: When it began; None for a round of an earlier process.
        seconds: Duration by phase of the server, as in the history; "round" is the whole round. Empty while it runs.
        sampled: The number of sampled clients.
        updates: The number of clients whose update counts.
        failed: The number of clients without an answer to one of its tasks.
        train: The training metrics, averaged by weight; at most `MAX_METRICS`.
        validate: The validation metrics, as `train`.
        bytes_sent: Bytes that the server sent in it.
        bytes_received: Bytes that the server received in it.
        retries: The number of retries of tasks below the quorum.
        is_best: Whether its model is the best one so far.
        reason: Why it was skipped, or why the run ended early with it; else the clients that were left out, and why.
    """

    round: Count
    state: Literal["running", "over", "skipped"]
    begin_s: Moment | None = None
    seconds: Mapping[Text, Amount] = field(default_factory=dict)
    sampled: Count = 0
    updates: Count = 0
    failed: Count = 0
    train: Mapping[Text, float] = field(default_factory=dict)
    validate: Mapping[Text, float] = field(default_factory=dict)
    bytes_sent: Count = 0
    bytes_received: Count = 0
    retries: Count = 0
    is_best: bool = False
    reason: Text = ""


@dataclass(frozen=True, slots=True)
class Refusal(_Status):
    """The server has refused a join, a call, or an answer.

    Attributes:
        at_s: When.
        client: The client's name; empty if it is not known.
        kind: The kind of refusal, such as "out-of-bounds"; "join" for a join.
        reason: The reason in words.
        task: The task of a refused answer, else empty.
        round: The round of a refused answer, else 0.
    """

    at_s: Moment
    client: Text
    kind: Text
    reason: Text
    task: Text = ""
    round: Count = 0


@dataclass(frozen=True, slots=True)
class ResourceStatus(_Status):
    """What a server's process uses. None: this system does not tell.

    Attributes:
        budget_bytes: The memory budget of payloads.
        staging_budget_bytes: The part of it for staged updates.
        staged_bytes: Bytes of staged updates in memory.
        resident_bytes: Resident memory of the process.
        disk_free_bytes: Bytes that are free on the file system of the run's directory; None without a directory.
        disk_total_bytes: The size of that file system.
    """

    budget_bytes: Count
    staging_budget_bytes: Count
    staged_bytes: Count
    resident_bytes: Count | None = None
    disk_free_bytes: Count | None = None
    disk_total_bytes: Count | None = None


@dataclass(frozen=True, slots=True)
class JobStatus(_Status):
    """The state of a job.

    Attributes:
        job: The contract's name.
        id: The job's id in a standing federation, else the run's id; empty before it is known.
        state: The state.
        reason: Why it waits, or how it ended; empty otherwise. It may name files of the server.
        round: The present round; the last one when the run is over.
        rounds: The number of rounds of the contract.
        rounds_over: The number of rounds that are over.
        task: The task of the present round.
        asked: The number of clients that were asked in the present attempt at the task.
        answered: The number of their answers that are in.
        connected: The number of connected clients.
        started_s: When this process began the run.
        ended_s: When the run ended; None while it has not.
        updated_s: When this status was taken.
        time_left_s: An estimate of the time to the end, from the rounds that are over; None before the first is.
        bytes_sent: Bytes of pieces that this process has sent.
        bytes_received: Bytes of pieces that this process has received.
        megabytes_per_s: The rate of both, over the last ten seconds.
        metrics: The metrics of the last round that is over: those of training, and those of validation over them.
        refusals: The number of refusals by kind.
        last_refusals: The last refusals, the newest last; at most `MAX_REFUSALS`.
        clients: The clients, by name; at most `MAX_CLIENTS`.
        clients_left_out: The number of clients that there was no room for in `clients`.
        last_rounds: The last rounds, the present one included; at most `ROUNDS_KEPT`.
        resources: What the server's process uses; None before it is known, and when the run is over.
        run: The run's id; empty before it has begun.
    """

    job: Text
    id: Text = ""
    state: State = "waiting"
    reason: Text = ""
    round: Count = 0
    rounds: Count = 0
    rounds_over: Count = 0
    task: Text = ""
    asked: Count = 0
    answered: Count = 0
    connected: Count = 0
    started_s: Moment | None = None
    ended_s: Moment | None = None
    updated_s: Moment = 0.0
    time_left_s: Amount | None = None
    bytes_sent: Count = 0
    bytes_received: Count = 0
    megabytes_per_s: Amount = 0.0
    metrics: Mapping[Text, float] = field(default_factory=dict)
    refusals: Mapping[Text, Count] = field(default_factory=dict)
    last_refusals: tuple[Refusal, ...] = ()
    clients: tuple[ClientStatus, ...] = ()
    clients_left_out: Count = 0
    last_rounds: tuple[RoundStatus, ...] = ()
    resources: ResourceStatus | None = None
    run: Text = ""

    @property
    def is_over(self) -> bool:
        """Whether the run has ended, in whichever way."""
        return self.state not in ("queued", "waiting", "running")

    def to_json(self) -> dict[str, Any]:
        """Return the values that JSON has."""
        return _fields(self) | {
            "last_refusals": [each.to_json() for each in self.last_refusals],
            "clients": [each.to_json() for each in self.clients],
            "last_rounds": [each.to_json() for each in self.last_rounds],
            "resources": None if self.resources is None else self.resources.to_json(),
        }


@dataclass(frozen=True, slots=True)
class SiteStatus(_Status):
    """One site of a standing federation.

    Attributes:
        name: The site's name.
        is_connected: Whether its agent is connected.
        jobs: The ids of the jobs that its processes have joined.
    """

    name: Text
    is_connected: bool
    jobs: tuple[Text, ...] = ()


@dataclass(frozen=True, slots=True)
class FederationStatus(_Status):
    """The state of a standing federation.

    Attributes:
        jobs: Its jobs, the newest first. Those that do not run have no clients.
        sites: Its sites, by name.
    """

    jobs: tuple[JobStatus, ...] = ()
    sites: tuple[SiteStatus, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return the values that JSON has."""
        return {"jobs": [each.to_json() for each in self.jobs], "sites": [each.to_json() for each in self.sites]}
