"""The progress of one client's upload, and the times at which it is spilled or counts as stalled."""

from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Any

from flcore.server.timers import NEVER


class UploadPhase(Enum):
    """The phase of an upload."""

    QUEUED = auto()
    """Its call waits for a window."""
    AWAITING_MEMORY = auto()
    """It has a window, and waits for memory."""
    TRANSFERRING = auto()
    """The client has to send the next piece, even if no call is open."""
    COMPLETE = auto()
    """All pieces were received."""
    COMMITTING = auto()
    """It is being committed."""


@dataclass(slots=True)
class UploadProgress:
    """The state of an announced upload. It outlives the calls that carry the upload.

    Time in TRANSFERRING counts as idle, also while the client is disconnected. Time in QUEUED and AWAITING_MEMORY does
    not, because the client may not send then.

    Attributes:
        key: Distinguishes the client's answers.
        upload: The caller's object for the upload.
        is_staged: False for an answer of metrics alone, which has no pieces.
        idle_since: The time of the last piece, plus the time since then that does not count.
        phase: The present phase.
        phase_since: The time at which QUEUED, AWAITING_MEMORY or TRANSFERRING was entered.
        is_spilled: Whether it was moved to disk. It stays there.
    """

    key: str
    upload: Any
    is_staged: bool
    idle_since: float
    phase: UploadPhase = field(default=UploadPhase.TRANSFERRING)
    phase_since: float = 0.0
    is_spilled: bool = False

    def __post_init__(self) -> None:
        if not self.is_staged:
            self.phase = UploadPhase.COMPLETE

    def enqueue(self, now: float) -> None:
        """A call begins, and waits for a window."""
        self._enter(UploadPhase.QUEUED, now)

    def await_memory(self, now: float) -> None:
        """The call has a window, and waits for memory."""
        self._enter(UploadPhase.AWAITING_MEMORY, now)

    def expect_pieces(self, now: float) -> None:
        """The client may send, or its call has ended."""
        self._enter(UploadPhase.TRANSFERRING, now)

    def record_piece(self, now: float, *, is_last: bool) -> None:
        """A piece was received."""
        self.idle_since = now
        self.phase = UploadPhase.COMPLETE if is_last else UploadPhase.TRANSFERRING

    def pause(self, seconds: float) -> None:
        """Do not count time in which the server process was suspended."""
        self.idle_since += seconds
        self.phase_since += seconds

    def spills_at(self, spill_after_s: float, memory_freed_at: float) -> float:
        """Return the time at which it is spilled to disk, if nothing changes.

        An upload that waits for memory is not spilled while other updates free some: it will get its share soon.
        """
        if self.is_spilled:
            return NEVER
        if self.phase is UploadPhase.AWAITING_MEMORY:
            return max(self.phase_since, memory_freed_at) + spill_after_s
        return self.idle_since + spill_after_s if self.phase is UploadPhase.TRANSFERRING else NEVER

    def stalls_at(self, stall_timeout_s: float) -> float:
        """Return the time at which it counts as stalled, if nothing changes."""
        return self.idle_since + stall_timeout_s if self.phase is UploadPhase.TRANSFERRING else NEVER

    def _enter(self, phase: UploadPhase, now: float) -> None:
        if self.phase in (UploadPhase.COMPLETE, UploadPhase.COMMITTING):
            return  # a repeated call of a complete upload waits for nothing
        if self.phase in (UploadPhase.QUEUED, UploadPhase.AWAITING_MEMORY):
            self.idle_since += now - self.phase_since
        self.phase, self.phase_since = phase, now
