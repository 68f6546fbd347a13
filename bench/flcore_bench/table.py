"""One table for all measurements: figures, the spread, the ratio to the limit."""

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from flcore_bench.machine import Machine


@dataclass(frozen=True)
class Row:
    """One line: what was measured, median and spread in seconds, bytes a second, and their share of the limit."""

    what: str
    median_s: float
    spread_s: tuple[float, float]
    bytes_per_s: float
    of_limit: float | None
    note: str = ""


def print_table(title: str, machine: Machine, rows: list[Row], console: Console | None = None) -> None:
    """Print rows, with the machine above them."""
    table = Table(title=f"{title}\n{machine.processor}, {machine.cores} cores, {machine.memory_gib} GiB")
    for heading in ("what", "median", "min to max", "GB/s", "of the limit", "note"):
        table.add_column(heading, justify="left" if heading in ("what", "note") else "right")
    for row in rows:
        low, high = row.spread_s
        share = "" if row.of_limit is None else f"{row.of_limit:.2f}"
        table.add_row(
            row.what,
            f"{row.median_s * 1e3:,.1f} ms",
            f"{low * 1e3:,.1f} to {high * 1e3:,.1f}",
            f"{row.bytes_per_s / 1e9:.2f}",
            share,
            row.note,
        )
    (console or Console(width=110)).print(table)


def write_json(path: str | os.PathLike[str], title: str, machine: Machine, rows: list[Row]) -> None:
    """Write the same as JSON."""
    content = {"title": title, "machine": asdict(machine), "rows": [asdict(row) for row in rows]}
    Path(path).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
