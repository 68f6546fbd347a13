"""The progress of one client's upload, and since when it is idle."""

from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Any

from flcore.server.timers import NEVER


class UploadPhase(Enum):
    """The phase of an upload."""

    QUEUED = auto()
    """Its stream waits in the queue of all transfers."""
    AWAITING_MEMORY = auto()
    """Its turn has come; it waits for memory."""
    TRANSFERRING = auto()
    """Its client may send."""
    COMPLETE = auto()
    """All pieces were received."""
    COMMITTING = auto()
    """It is being committed."""


@dataclass(slots=True)
class UploadProgress:
    """The transfer state of an announced answer: its phase, and since when it has been idle. It outlives its streams.

    Time while its client may send counts as idle, also while disconnected. Time queued for a turn or for memory does
    not. `is_spilled` is true once it was spilled to disk.
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
        """A stream begins, and waits for its turn."""
        self._enter(UploadPhase.QUEUED, now)

    def await_memory(self, now: float) -> None:
        """Its turn has come."""
        self._enter(UploadPhase.AWAITING_MEMORY, now)

    def resume(self, now: float) -> None:
        """The wait is over, or the stream has ended."""
        self._enter(UploadPhase.TRANSFERRING, now)

    def record_piece(self, now: float, *, is_last: bool) -> None:
        """A piece was received."""
        self.idle_since = now
        self.phase = UploadPhase.COMPLETE if is_last else UploadPhase.TRANSFERRING

    def pause(self, seconds: float) -> None:
        """Do not count a time in which the server itself stood still."""
        self.idle_since += seconds
        self.phase_since += seconds

    def spills_at(self, spill_after_s: float, memory_freed_at: float) -> float:
        """Return when it is spilled to disk, if nothing changes. It waits for memory while others release some."""
        if self.is_spilled:
            return NEVER
        if self.phase is UploadPhase.AWAITING_MEMORY:
            return max(self.phase_since, memory_freed_at) + spill_after_s
        return self.idle_since + spill_after_s if self.phase is UploadPhase.TRANSFERRING else NEVER

    def fails_at(self, stall_timeout_s: float) -> float:
        """Return when it counts as stalled, if nothing changes."""
        return self.idle_since + stall_timeout_s if self.phase is UploadPhase.TRANSFERRING else NEVER

    def _enter(self, phase: UploadPhase, now: float) -> None:
        if self.phase in (UploadPhase.COMPLETE, UploadPhase.COMMITTING):
            return
        if self.phase in (UploadPhase.QUEUED, UploadPhase.AWAITING_MEMORY):
            self.idle_since += now - self.phase_since
        self.phase, self.phase_since = phase, now
