"""The timeline of a round: which client was in which phase from when to when, in little memory."""

from array import array
from collections import OrderedDict
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

PhaseName = Literal["queued", "downloading", "training", "uploading", "checked", "folded", "refused", "failed", "lost"]
"""Where a client is in its task:

- "queued": its download has not begun, or its upload waits for a window or for memory.
- "downloading": it receives the model.
- "training": it has the model, and works on its task, whichever it is.
- "uploading": the server receives its update.
- "checked": all pieces are in and were checked; or its answer has no pieces and is in.
- "folded": its update is in the total of the round.
- "refused": the server has refused its answer.
- "failed": it gives no answer, for another reason: an error in its code, or no answer in time.
- "lost": its connection was lost.
"""

PHASES: tuple[PhaseName, ...] = get_args(PhaseName)

ROUNDS_KEPT = 50
"""The rounds whose timelines are kept."""

MAX_SPANS = 400_000
"""The most spans of all rounds, 24 bytes each. Beyond it, the oldest rounds have no timeline."""

MAX_ROUND_SPANS = 50_000
"""The most spans of one round. Later ones of that round are left out."""

NO_SPAN = -1


@dataclass(frozen=True, slots=True)
class Phase:
    """A client was in one phase of a task.

    Attributes:
        client: The client's name.
        task: The task.
        phase: The phase.
        begin_s: When it began, in seconds since the epoch.
        end_s: When it ended; None while it lasts.
    """

    client: str
    task: str
    phase: PhaseName
    begin_s: float
    end_s: float | None

    def to_json(self) -> dict[str, Any]:
        """Return the values that JSON has."""
        return asdict(self)


class _Spans:
    """The spans of one round, as columns. A number stands for a client and its task; `names` has both."""

    def __init__(self) -> None:
        self.owners, self.phases = array("L"), array("B")
        self.begins, self.ends = array("d"), array("d")
        self.names: list[tuple[str, str]] = []
        self._numbers: dict[tuple[str, str], int] = {}

    def number_of(self, client: str, task: str) -> int:
        """Return the number that stands for a client and its task."""
        number = self._numbers.setdefault((client, task), len(self.names))
        if number == len(self.names):
            self.names.append((client, task))
        return number


class Timeline:
    """The phases of the last `ROUNDS_KEPT` rounds. Not thread-safe: the board holds its lock."""

    def __init__(self) -> None:
        self._rounds: OrderedDict[int, _Spans] = OrderedDict()
        self._count = 0

    def begin(self, round_number: int, client: str, task: str, phase: PhaseName, now: float) -> int:
        """Begin a phase. Returns the number of its span, for `end`; `NO_SPAN` if it is left out."""
        spans = self._rounds.get(round_number)
        if spans is None:
            spans = self._add_round(round_number)
        if len(spans.owners) >= MAX_ROUND_SPANS:
            return NO_SPAN
        spans.owners.append(spans.number_of(client, task))
        spans.phases.append(PHASES.index(phase))
        spans.begins.append(now)
        spans.ends.append(0.0)
        self._count += 1
        return len(spans.owners) - 1

    def end(self, round_number: int, span: int, now: float) -> None:
        """End the phase of a span."""
        spans = self._rounds.get(round_number)
        if spans is not None and span != NO_SPAN:
            spans.ends[span] = now

    def rounds(self) -> tuple[int, ...]:
        """Return the numbers of the rounds that have a timeline, in the order in which they began."""
        return tuple(self._rounds)

    def copy(self, round_number: int) -> "TimelineCopy":
        """Return a copy of a round's spans, which `TimelineCopy.phases` turns into phases without the lock."""
        spans = self._rounds.get(round_number) or _Spans()
        return TimelineCopy(spans.owners[:], spans.phases[:], spans.begins[:], spans.ends[:], spans.names)

    def _add_round(self, round_number: int) -> _Spans:
        spans = self._rounds[round_number] = _Spans()
        while len(self._rounds) > ROUNDS_KEPT or (self._count > MAX_SPANS - MAX_ROUND_SPANS and len(self._rounds) > 1):
            _, oldest = self._rounds.popitem(last=False)
            self._count -= len(oldest.owners)
        return spans


@dataclass(frozen=True, slots=True)
class TimelineCopy:
    """The spans of one round, as columns. `names` only grows."""

    owners: "array[int]"
    phases_of: "array[int]"
    begins: "array[float]"
    ends: "array[float]"
    names: list[tuple[str, str]]

    def phases(self) -> tuple[Phase, ...]:
        """Return the phases, in the order in which they began."""
        columns = zip(self.owners, self.phases_of, self.begins, self.ends, strict=True)
        return tuple(
            Phase(*self.names[owner], PHASES[phase], begin, end or None) for owner, phase, begin, end in columns
        )
