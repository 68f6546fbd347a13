"""How far one client's answer is on its way in, and since when nothing has come of it."""

from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Any

from flcore.server.timers import NEVER


class UploadPhase(Enum):
    """What an answer waits for."""

    QUEUED = auto()
    """Its stream waits for its turn among all transfers."""
    AWAITING_MEMORY = auto()
    """Its turn has come; it waits for room in memory."""
    TRANSFERRING = auto()
    """Its client may send."""
    COMPLETE = auto()
    """Every piece is in."""
    COMMITTING = auto()
    """It is being made to count."""


@dataclass(slots=True)
class UploadProgress:
    """An answer that has been announced. It outlives the streams that carry it: a new one goes on where one broke off.

    Its client's silence counts while it may send, a broken connection included; waiting for a turn or for room does not
    count. `is_spilled` says that it was sent to disk.
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
        """A stream of it begins, and waits for its turn."""
        self._enter(UploadPhase.QUEUED, now)

    def await_memory(self, now: float) -> None:
        """Its turn has come."""
        self._enter(UploadPhase.AWAITING_MEMORY, now)

    def resume(self, now: float) -> None:
        """It need not wait any more, or its stream has ended."""
        self._enter(UploadPhase.TRANSFERRING, now)

    def record_piece(self, now: float, *, is_last: bool) -> None:
        """A piece is in."""
        self.idle_since = now
        self.phase = UploadPhase.COMPLETE if is_last else UploadPhase.TRANSFERRING

    def pause(self, seconds: float) -> None:
        """The server stood still for so long."""
        self.idle_since += seconds
        self.phase_since += seconds

    def spills_at(self, spill_after_s: float, memory_freed_at: float) -> float:
        """Return when it goes to disk, if nothing changes. It waits for room as long as others give some back."""
        if self.is_spilled:
            return NEVER
        if self.phase is UploadPhase.AWAITING_MEMORY:
            return max(self.phase_since, memory_freed_at) + spill_after_s
        return self.idle_since + spill_after_s if self.phase is UploadPhase.TRANSFERRING else NEVER

    def fails_at(self, stall_timeout_s: float) -> float:
        """Return when its client has failed, if nothing changes."""
        return self.idle_since + stall_timeout_s if self.phase is UploadPhase.TRANSFERRING else NEVER

    def _enter(self, phase: UploadPhase, now: float) -> None:
        if self.phase in (UploadPhase.COMPLETE, UploadPhase.COMMITTING):
            return
        if self.phase in (UploadPhase.QUEUED, UploadPhase.AWAITING_MEMORY):
            self.idle_since += now - self.phase_since
        self.phase, self.phase_since = phase, now
