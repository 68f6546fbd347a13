"""flcore in place of a peer's own mean, through its adapter: the aggregation by itself, and whole rounds."""

from pathlib import Path
from statistics import median
from typing import Any

from flcore_bench.child import answer_of
from flcore_bench.progress import measuring
from flcore_bench.round import SIZES_MB
from flcore_bench.row import Row, ratio

ADAPTERS = {"flower": "Flower", "nvflare": "NVFLARE"}
WAYS = {"own": "its own mean", "float32": "flcore float32", "exact": "flcore exact"}
CLIENTS = 4
ROUNDS = 3
"""The first of which warms up."""


def drop_in_rows(name: str, python: Path, scale: str, threads: int, environment: dict[str, str]) -> list[Row]:
    """Measure one peer that has an adapter, in `python`, where both are installed."""

    def answer(module: str, *arguments: str) -> Any:
        return answer_of(
            f"flcore_bench.peers.{module}", *arguments, threads=threads, python=python, environment=environment
        )

    measuring(f"aggregation in {name}, its own and ours")
    rows = [Row.from_json(row) for row in answer("exchange", f"{name}_exchange", scale)]
    size = SIZES_MB[scale] * 10**6
    own: Row | None = None
    for way, what in WAYS.items():
        measuring(f"rounds of {name} with {what}")
        found = answer(f"round_{name}", str(size), str(CLIENTS), str(ROUNDS), way)
        row = _round_row(
            f"round, {ADAPTERS[name]} {found['version']}, {size // 10**6} MB x {CLIENTS} clients: {what}", found
        )
        own = own or row
        if row is not own:
            row.against["its own"] = ratio(own.seconds, row.seconds)
        rows.append(row)
    return rows


def _round_row(what: str, found: Any) -> Row:
    peaks = ", ".join(f"{process}'s peak {peak / 1e6:,.0f} MB" for process, peak in found["peaks"].items())
    return Row(what, found["seconds"], note=f"{median(found['aggregation']):.2f} s in aggregation; {peaks}")
