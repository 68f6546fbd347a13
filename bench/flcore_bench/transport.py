"""`flcore bench transport`: flcore's streams of pieces next to bare grpcio streams with pieces of the same size.

`bench/transport_trial.py` varies pieces, window and connections.
"""

import json
import sys
from contextlib import ExitStack

from flcore_bench.process import run_in_process
from flcore_bench.report import Goal, Row, ratio
from flcore_bench.timing import Sample, interleaved_samples
from flcore_bench.transport_client import bare_samples, checked_samples, folded_sample
from flcore_bench.transport_tuning import Tuning

SIZES = {"small": 256_000_000, "full": 512_000_000}
ROUNDS = {"small": 3, "full": 7}
OF_BARE = 0.85
"""The goal of each of flcore's streams: its share of a bare stream's speed."""

BARE = {
    "upload": {"bare, acknowledged": "upload, bare, acknowledged", "bare": "upload, bare"},
    "download": {"bare": "download, bare"},
}
"""The baselines of each direction."""


def transport_rows(scale: str, threads: int) -> list[Row]:
    """Measure in a new process."""
    return [Row.from_json(row) for row in run_in_process("flcore_bench.transport", scale, threads=threads)]


def measured_rows(size: int, rounds: int, tuning: Tuning, threads: int) -> list[Row]:
    """Measure all streams interleaved, each server in a process of its own, and return a row for each."""
    tuning.apply()
    size -= size % (1024 * tuning.connections)
    with ExitStack() as stack:
        samples: dict[str, Sample] = {}
        samples |= stack.enter_context(bare_samples(size, tuning, threads))
        samples |= stack.enter_context(checked_samples(size, tuning, threads))
        for accumulate in ("float32", "exact"):
            samples |= stack.enter_context(folded_sample(size, accumulate, tuning, threads))
        taken = interleaved_samples(samples, rounds)
    return [_row(name, taken, size, tuning) for name in sorted(taken, key=lambda name: not name.startswith("upload"))]


def _row(name: str, taken: dict[str, list[float]], size: int, tuning: Tuning) -> Row:
    shape = f"{size / 1e6:,.0f} MB in {tuning.piece / 2**20:g} MiB pieces"
    if tuning.connections > 1:
        shape += f" over {tuning.connections} connections"
    row = Row(f"{name}, {shape}", taken[name], size)
    if "flcore" in name:
        for bare, case in BARE[name.partition(",")[0]].items():
            share = ratio(taken[case], taken[name])
            row.against[bare] = share
            row.goals.append(Goal(f"of {bare}", share, OF_BARE))
    return row


def main() -> None:
    """In that process: measure, and print the rows as JSON."""
    scale, threads = sys.argv[1], int(sys.argv[2])
    rows = measured_rows(SIZES[scale], ROUNDS[scale], Tuning(), threads)
    print(json.dumps([row.to_json() for row in rows]))
