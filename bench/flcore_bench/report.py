"""A report: the rows of one run with date, command and machine; printed as a table, written as JSON, and judged."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from flcore import FlcoreError
from flcore_bench.machine import Machine
from flcore_bench.row import Row

HEADINGS = ("what", "median ms", "min..max", "GB/s", "of limit", "against (times as long)", "goals", "note")
LEFT = {"what", "against (times as long)", "goals", "note"}


class LimitBeaten(FlcoreError):
    """Something was faster than the limit of its run: the loops that measure the limit are not good enough."""


@dataclass(frozen=True)
class Report:
    """One run of `flcore bench`. `absent` names the peers that were not there: with any, it is not a full run."""

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
        """Whether the run counts: at full size, with nobody absent."""
        return self.scale == "full" and not self.absent

    @property
    def missed(self) -> list[str]:
        """The goals that were not reached."""
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

        At a smaller scale data fits into caches, and one interrupt weighs as much as a row: the report tells it.
        """
        if self.scale == "full" and self.beyond_limits:
            raise LimitBeaten(
                f"{self.beyond_limits[0]}. Nothing reads faster than the limit, so its loops are not good enough here, "
                "and no ratio to it holds. Give the machine to this run alone, as what disturbs some loops can spare "
                "others, or add a better one to flcore_bench/limit_loops.py"
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
    used = [place for place in range(len(HEADINGS)) if any(line[place] for line in full[1:])]
    widths = {place: max(len(line[place]) for line in full) for place in used}
    left = {place for place in used if HEADINGS[place] in LEFT}

    def padded(line: list[str]) -> str:
        cells = (line[p].ljust(widths[p]) if p in left else line[p].rjust(widths[p]) for p in used)
        return f"| {' | '.join(cells)} |"

    rule = "|".join("-" * (widths[p] + 2) if p in left else "-" * (widths[p] + 1) + ":" for p in used)
    return [padded(full[0]), f"|{rule}|", *(padded(line) for line in full[1:])]
