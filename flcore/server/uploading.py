"""How far one client's answer is on its way in, and since when nothing has come of it."""

from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Any

from flcore.server.timers import NEVER


class Phase(Enum):
    """What an answer waits for."""

    QUEUED = auto()
    """Its stream waits for its turn among all transfers."""
    WAITING = auto()
    """Its turn has come; it waits for room in memory."""
    MOVING = auto()
    """Its client may send."""
    WHOLE = auto()
    """Every piece is in."""
    COMMITTING = auto()
    """It is being made to count."""


@dataclass(slots=True)
class Uploading:
    """An answer that has been announced. It outlives the streams that carry it: a new one goes on where one broke off.

    Its client's silence counts while it may send, a broken connection included; waiting for a turn or for room does not
    count. `is_spilled` says that it was sent to disk.
    """

    key: str
    upload: Any
    is_staged: bool
    quiet_since: float
    phase: Phase = field(default=Phase.MOVING)
    since: float = 0.0
    is_spilled: bool = False

    def __post_init__(self) -> None:
        if not self.is_staged:
            self.phase = Phase.WHOLE

    def enter_queue(self, now: float) -> None:
        """A stream of it begins, and waits for its turn."""
        self._enter(Phase.QUEUED, now)

    def want_room(self, now: float) -> None:
        """Its turn has come."""
        self._enter(Phase.WAITING, now)

    def move(self, now: float) -> None:
        """It need not wait any more, or its stream has ended."""
        self._enter(Phase.MOVING, now)

    def take_piece(self, now: float, *, is_last: bool) -> None:
        """A piece is in."""
        self.quiet_since = now
        self.phase = Phase.WHOLE if is_last else Phase.MOVING

    def pause(self, seconds: float) -> None:
        """The server stood still for so long."""
        self.quiet_since += seconds
        self.since += seconds

    def spills_at(self, spill_after_s: float, room_released_at: float) -> float:
        """Return when it goes to disk, if nothing changes. It waits for room as long as others give some back."""
        if self.is_spilled:
            return NEVER
        if self.phase is Phase.WAITING:
            return max(self.since, room_released_at) + spill_after_s
        return self.quiet_since + spill_after_s if self.phase is Phase.MOVING else NEVER

    def fails_at(self, stall_timeout_s: float) -> float:
        """Return when its client has failed, if nothing changes."""
        return self.quiet_since + stall_timeout_s if self.phase is Phase.MOVING else NEVER

    def _enter(self, phase: Phase, now: float) -> None:
        if self.phase in (Phase.WHOLE, Phase.COMMITTING):
            return
        if self.phase in (Phase.QUEUED, Phase.WAITING):
            self.quiet_since += now - self.since
        self.phase, self.since = phase, now
