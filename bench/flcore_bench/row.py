"""One measured line: what, how long, how far from the limit, against whom, and what it was meant to reach."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any

ALLOWANCE = 0.02
"""How far below the limit's time a measured one may fall before the limit counts as beaten: what a timer may err."""


@dataclass(frozen=True)
class Goal:
    """A figure and its bound; `unit` follows both in print."""

    what: str
    value: float
    bound: float
    is_at_least: bool = True
    unit: str = "x"

    @property
    def is_met(self) -> bool:
        """Whether the figure keeps its bound."""
        return self.value >= self.bound if self.is_at_least else self.value <= self.bound

    def __str__(self) -> str:
        sign = ">=" if self.is_at_least else "<="
        verdict = "met" if self.is_met else "missed"
        return f"{self.what}: {self.value:.3g}{self.unit} ({sign} {self.bound:g}{self.unit}) {verdict}"


@dataclass(frozen=True)
class Limit:
    """What the machine can do: the seconds of the loop with the best median, and the fastest run of any loop."""

    loop: str
    seconds: list[float]
    fastest_s: float

    @property
    def median_s(self) -> float:
        """The middle of all rounds."""
        return median(self.seconds)


@dataclass(frozen=True)
class Row:
    """One line of a table.

    `seconds` has one entry per round, and `limit` was measured in the same rounds. `bytes` counts the clients' bytes,
    which GB/s refers to (0: none). `against` has how many times as long each baseline took. `series` is the name of its
    bar in a plot ("": none).
    """

    what: str
    seconds: list[float]
    bytes: int = 0
    limit: Limit | None = None
    against: dict[str, float] = field(default_factory=dict)
    goals: list[Goal] = field(default_factory=list)
    note: str = ""
    series: str = ""

    @property
    def median_s(self) -> float:
        """The middle of all rounds."""
        return median(self.seconds)

    @property
    def bytes_per_s(self) -> float | None:
        """The clients' bytes, per second of the median round."""
        return self.bytes / self.median_s if self.bytes else None

    @property
    def of_limit(self) -> float | None:
        """The limit's time over ours, medians both: 1 is as fast as this machine reads and writes."""
        return None if self.limit is None else self.limit.median_s / self.median_s

    @property
    def beats_limit(self) -> bool:
        """Whether it was faster than the limit, by the medians or by the fastest runs; then the limit is no limit."""
        if self.limit is None:
            return False
        bar = 1 - ALLOWANCE
        return self.median_s < bar * self.limit.median_s or min(self.seconds) < bar * self.limit.fastest_s

    def to_json(self) -> dict[str, Any]:
        """Return the row as JSON's types, with what a reader would otherwise compute."""
        goals = [asdict(goal) | {"is_met": goal.is_met} for goal in self.goals]
        derived = {"median_s": self.median_s, "bytes_per_s": self.bytes_per_s, "of_limit": self.of_limit}
        return asdict(self) | {"goals": goals} | derived

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "Row":
        """Return the row that `to_json` made."""
        names = ("what", "seconds", "bytes", "against", "note", "series")
        goals = [Goal(*(goal[name] for name in Goal.__dataclass_fields__)) for goal in content["goals"]]
        limit = None if content["limit"] is None else Limit(**content["limit"])
        return cls(**{name: content[name] for name in names}, limit=limit, goals=goals)


def ratio(theirs: list[float], ours: list[float]) -> float:
    """Return how many times as long theirs took, by the medians."""
    return median(theirs) / median(ours)
