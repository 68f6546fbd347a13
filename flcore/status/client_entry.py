"""One client on a status board: where it is in its task, its bytes, its refusals."""

from dataclasses import dataclass, field
from typing import Literal

from flcore.status.job_status import ClientStatus
from flcore.status.rate import MEGABYTE
from flcore.status.timeline import NO_SPAN, PhaseName, Timeline
from flcore.text import printable

MAX_REASON_CHARACTERS = 300
"""The most characters of a reason."""

MAX_KINDS = 32
"""The most kinds of refusals that are counted apart; the rest is counted as "other"."""

OUT_PHASES = ("refused", "failed", "lost")
"""The phases of a client without an answer."""


def count_kind(counts: dict[str, int], kind: str) -> None:
    """Count a refusal of a kind."""
    kind = printable(kind, 64)
    if kind not in counts and len(counts) >= MAX_KINDS:
        kind = "other"
    counts[kind] = counts.get(kind, 0) + 1


def short_reason(reason: str) -> str:
    """Return a reason in one line."""
    return printable(
        "; ".join(line.strip() for line in reason[: 2 * MAX_REASON_CHARACTERS].splitlines()), MAX_REASON_CHARACTERS
    )


@dataclass(eq=False, slots=True)
class ClientEntry:
    """One client. Times are in seconds since the epoch.

    Attributes:
        is_pending: Whether it has a task that it has neither answered nor failed.
        payload_id: The model that it has.
        assigned_payload_id: The model of its present task.
        kept_phase: Its phase before its connection was lost.
        transferred: Bytes of its present or last transfer.
        transfer_begin: When that began.
        transfer_end: When it ended; None while it lasts.
    """

    name: str
    is_connected: bool = False
    is_pending: bool = False
    phase: PhaseName | Literal[""] = ""
    task: str = ""
    round: int = 0
    phase_begin: float | None = None
    span: int = NO_SPAN
    progress: float | None = None
    payload_id: str = ""
    assigned_payload_id: str = ""
    kept_phase: PhaseName = "queued"
    bytes_sent: int = 0
    bytes_received: int = 0
    transferred: int = 0
    transfer_begin: float = 0.0
    transfer_end: float | None = 0.0
    last_seen: float | None = None
    answers: int = 0
    failures: int = 0
    refusals: dict[str, int] = field(default_factory=dict)
    last_reason: str = ""

    def assign(self, task: str, round_number: int, payload_id: str, timeline: Timeline, now: float) -> None:
        """The client is assigned a task."""
        self.end_phase(timeline, now)
        self.task, self.round, self.is_pending, self.progress = task, round_number, True, None
        self.assigned_payload_id = payload_id
        self.kept_phase = "training" if payload_id and payload_id == self.payload_id else "queued"
        self.enter(self.kept_phase if self.is_connected else "lost", timeline, now)

    def is_at(self, task: str, round_number: int) -> bool:
        """Whether its present or last task is this one."""
        return self.task == task and self.round == round_number

    def enter(self, phase: PhaseName, timeline: Timeline, now: float) -> None:
        """The client enters a phase."""
        if phase == self.phase and self.span != NO_SPAN:
            return
        timeline.end(self.round, self.span, now)
        self.span = timeline.begin(self.round, self.name, self.task, phase, now)
        self.phase, self.phase_begin = phase, now

    def end_phase(self, timeline: Timeline, now: float) -> None:
        """The client's phase is over: its round is."""
        timeline.end(self.round, self.span, now)
        self.span = NO_SPAN

    def begin_transfer(self, now: float) -> None:
        """A transfer begins."""
        self.transferred, self.transfer_begin, self.transfer_end = 0, now, None

    def end_transfer(self, now: float) -> None:
        """The transfer has ended."""
        if self.transfer_end is None:
            self.transfer_end = now

    def add_bytes(self, sent: int, received: int, now: float) -> None:
        """A piece was sent or received."""
        self.bytes_sent += sent
        self.bytes_received += received
        self.transferred += sent + received
        self.last_seen = now

    def megabytes_per_s(self, now: float) -> float:
        """Return the rate of the present or last transfer."""
        seconds = (now if self.transfer_end is None else self.transfer_end) - self.transfer_begin
        return self.transferred / MEGABYTE / seconds if seconds > 0 else 0.0

    def status(self, now: float) -> ClientStatus:
        """Return the client's status."""
        return ClientStatus(
            name=self.name,
            is_connected=self.is_connected,
            phase=self.phase,
            task=self.task,
            round=self.round,
            phase_begin_s=self.phase_begin,
            progress=self.progress,
            bytes_sent=self.bytes_sent,
            bytes_received=self.bytes_received,
            megabytes_per_s=self.megabytes_per_s(now),
            last_seen_s=self.last_seen,
            answers=self.answers,
            failures=self.failures,
            refusals=dict(self.refusals),
            last_reason=self.last_reason,
        )
