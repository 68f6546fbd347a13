"""The rows of the table of jobs: what a submission fixes, and what becomes of it."""

from dataclasses import dataclass, field
from typing import Any, NamedTuple

from flcore.federation.messages import JobState

OPEN_STATES: tuple[JobState, ...] = ("queued", "running")


@dataclass(frozen=True)
class NewJob:
    """What a submission fixes.

    Attributes:
        name: The contract's name.
        lead: The submitter's name, for people.
        owner: The submitter's identity, `ROLE/NAME` of the certificate.
        pack_digest: The SHA-256 of the pack.
        pack_nbytes: The pack's size.
        signer: The name of the pack's signer; empty if it has none.
        contract: The contract with the changes, as canonical JSON.
        contract_fingerprint: Its digest.
        code_digest: The digest of the code.
        changes: The keys of the contract that were replaced.
        rounds: The number of rounds.
        resident_bytes: Memory that the job takes beside its share of the budget.
    """

    name: str
    lead: str
    owner: str
    pack_digest: str
    pack_nbytes: int
    signer: str
    contract: str
    contract_fingerprint: str
    code_digest: str
    changes: dict[str, Any]
    rounds: int
    resident_bytes: int = 0


@dataclass(frozen=True)
class JobLine:
    """What a list shows of a job: the columns that are short."""

    number: int
    name: str
    lead: str
    owner: str
    state: JobState
    reason: str
    submitted: str
    started: str
    ended: str
    round: int
    rounds: int

    @property
    def id(self) -> str:
        """The job's id."""
        return f"{self.name}-{self.number}"


class QueueSize(NamedTuple):
    """How much the queue holds: all jobs in it, those of one owner, and the bytes of all contracts."""

    jobs: int
    own_jobs: int
    contract_bytes: int


@dataclass(frozen=True)
class JobRow(NewJob):
    """A job. `round` and `metrics` are those of its end. Times are in UTC, empty if not yet."""

    number: int = 0
    state: JobState = "queued"
    reason: str = ""
    submitted: str = ""
    started: str = ""
    ended: str = ""
    round: int = 0
    metrics: dict[str, float] = field(default_factory=dict)

    @property
    def id(self) -> str:
        """The job's id."""
        return f"{self.name}-{self.number}"

    @property
    def is_over(self) -> bool:
        """Whether the job neither waits nor runs."""
        return self.state not in OPEN_STATES
