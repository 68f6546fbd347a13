"""The result of a benchmark: rows with their limits and goals, in a report that is printed or written as JSON."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from flcore import FlcoreError
from flcore_bench.machine import Machine

HEADINGS = ("what", "median ms", "min..max", "GB/s", "of limit", "against (times as long)", "goals", "note")
LEFT_ALIGNED = {"what", "against (times as long)", "goals", "note"}

ALLOWANCE = 0.02
"""The timer's error: a time may be this share below the limit's without beating it."""


@dataclass(frozen=True)
class Goal:
    """A figure and its bound. `unit` is printed after both."""

    what: str
    value: float
    bound: float
    is_at_least: bool = True
    unit: str = "x"

    @property
    def is_met(self) -> bool:
        """Whether the figure is within its bound."""
        return self.value >= self.bound if self.is_at_least else self.value <= self.bound

    def __str__(self) -> str:
        sign = ">=" if self.is_at_least else "<="
        verdict = "met" if self.is_met else "missed"
        return f"{self.what}: {self.value:.3g}{self.unit} ({sign} {self.bound:g}{self.unit}) {verdict}"


@dataclass(frozen=True)
class Limit:
    """The machine's limit: the loop with the best median, and the fastest run of any loop."""

    loop: str
    seconds: list[float]
    fastest_s: float

    @property
    def median_s(self) -> float:
        """The median of all rounds."""
        return median(self.seconds)


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        what: What was measured.
        seconds: The time in each round.
        bytes: The clients' bytes, for GB/s (0: none).
        limit: The limit, measured in the same rounds.
        against: How many times as long each baseline took, by name.
        goals: Figures with bounds.
        note: Free text.
        series: The name of the row's bar in a plot ("": none).
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
        """The median of all rounds."""
        return median(self.seconds)

    @property
    def bytes_per_s(self) -> float | None:
        """The clients' bytes, per second of the median round."""
        return self.bytes / self.median_s if self.bytes else None

    @property
    def of_limit(self) -> float | None:
        """The limit's median time divided by this row's: 1 is as fast as this machine reads and writes."""
        return None if self.limit is None else self.limit.median_s / self.median_s

    @property
    def beats_limit(self) -> bool:
        """Whether the row was faster than the limit, by the medians or the fastest runs. Then the limit is invalid."""
        if self.limit is None:
            return False
        bar = 1 - ALLOWANCE
        return self.median_s < bar * self.limit.median_s or min(self.seconds) < bar * self.limit.fastest_s

    def to_json(self) -> dict[str, Any]:
        """Return the row as JSON's types, including the derived figures."""
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
    """Return how many times as long `theirs` took as `ours`, by the medians."""
    return median(theirs) / median(ours)


class LimitBeaten(FlcoreError):
    """A row was faster than the limit of its run, so the limit loops are not fast enough here."""


@dataclass(frozen=True)
class Report:
    """One run of `flcore bench`. `absent` names the peers that are not installed; then it is not a full run."""

    command: str
    date: str
    scale: str
    rounds: int
    threads: int
    machine: Machine
    rows: list[Row]
    absent: list[str] = field(default_factory=list)

    @property
    def is_full(self) -> bool:
        """Whether the run may be published: at full scale, with all peers."""
        return self.scale == "full" and not self.absent

    @property
    def missed(self) -> list[str]:
        """The goals that were missed."""
        return [f"{row.what}: {goal}" for row in self.rows for goal in row.goals if not goal.is_met]

    @property
    def beyond_limits(self) -> list[str]:
        """The rows that were faster than the limit of their run, with the figures of both."""
        return [
            f"{row.what}: {_times(row.median_s, min(row.seconds))}, less than the limit of the same run, "
            f"{_times(row.limit.median_s, row.limit.fastest_s)}"
            for row in self.rows
            if row.limit is not None and row.beats_limit
        ]

    def require_limits(self) -> None:
        """Raise `LimitBeaten` if any row of a run at full scale was faster than its limit.

        At a smaller scale, data fits into caches and one interrupt distorts a row, so the report only lists the rows.
        """
        if self.scale == "full" and self.beyond_limits:
            raise LimitBeaten(
                f"{self.beyond_limits[0]}. Nothing can read faster than the limit, so its loops are too slow here and "
                "ratios to it are invalid. Run the benchmark with nothing else on the machine, or add a faster loop "
                "to flcore_bench/limit_loops.py"
            )

    def text(self) -> str:
        """Return the report as Markdown, which also reads well in a terminal."""
        rounds = f"medians of {self.rounds}" + (" (too few to publish)" if self.rounds < 7 else "")
        lines = [f"`{self.command}`, {self.date}", "", self.machine.line + ".", ""]
        lines += [f"{rounds}, all contenders of a row in turn in one process, {self.threads} threads.", ""]
        lines += _table([HEADINGS, *(_cells(row) for row in self.rows), *([name, "absent"] for name in self.absent)])
        if self.absent:
            lines += ["", f"Not a full run: absent are {', '.join(self.absent)}."]
        elif not self.is_full:
            lines += ["", f"Not a full run: this is --scale {self.scale}, and the goals are those of --scale full."]
        if self.beyond_limits and self.scale != "full":
            lines += ["", "Faster than the limit, which counts at --scale full only:"]
            lines += [f"- {beyond}" for beyond in self.beyond_limits]
        if self.missed and self.scale == "full":
            lines += ["", f"{len(self.missed)} goals missed:", *(f"- {missed}" for missed in self.missed)]
        return "\n".join(lines)

    def write(self, path: Path) -> None:
        """Write everything as JSON."""
        content = asdict(self) | {"rows": [row.to_json() for row in self.rows], "is_full": self.is_full}
        path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> "Report":
        """Return the report that `write` wrote."""
        content: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        names = ("command", "date", "scale", "rounds", "threads", "absent")
        return cls(
            **{name: content[name] for name in names},
            machine=Machine(**content["machine"]),
            rows=[Row.from_json(row) for row in content["rows"]],
        )


def _cells(row: Row) -> list[str]:
    return [
        row.what,
        _milliseconds(row.median_s),
        f"{_milliseconds(min(row.seconds))}..{_milliseconds(max(row.seconds))}",
        "" if row.bytes_per_s is None else f"{row.bytes_per_s / 1e9:.2f}",
        "" if row.of_limit is None else f"{row.of_limit:.2f}",
        "; ".join(f"{name} {times:.2f}x" for name, times in row.against.items()),
        "; ".join(str(goal) for goal in row.goals),
        row.note,
    ]


def _times(median_s: float, fastest_s: float) -> str:
    return f"{_milliseconds(median_s)} ms in the median and {_milliseconds(fastest_s)} ms at its fastest"


def _milliseconds(seconds: float) -> str:
    return f"{seconds * 1e3:,.{3 if seconds < 1e-2 else 1}f}"


def _table(lines: list[Any]) -> list[str]:
    """Return lines of cells as a Markdown table, padded so that it also reads as plain text."""
    full = [[*line, *[""] * (len(HEADINGS) - len(line))] for line in lines]
    used = [column for column in range(len(HEADINGS)) if any(line[column] for line in full[1:])]
    widths = {column: max(len(line[column]) for line in full) for column in used}
    left = {column for column in used if HEADINGS[column] in LEFT_ALIGNED}

    def padded(line: list[str]) -> str:
        cells = (line[p].ljust(widths[p]) if p in left else line[p].rjust(widths[p]) for p in used)
        return f"| {' | '.join(cells)} |"

    rule = "|".join("-" * (widths[p] + 2) if p in left else "-" * (widths[p] + 1) + ":" for p in used)
    return [padded(full[0]), f"|{rule}|", *(padded(line) for line in full[1:])]
