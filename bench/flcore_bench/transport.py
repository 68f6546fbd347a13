"""`flcore bench transport`: flcore's streams of pieces beside bare grpcio streams of the same piece size.

`python -m flcore_bench.trial --help` varies pieces, window and connections.
"""

import json
import sys
from contextlib import ExitStack

from flcore_bench.child import answer_of
from flcore_bench.progress import measuring
from flcore_bench.row import Goal, Row, ratio
from flcore_bench.transport_client import Sample, bare_samples, checked_samples, folded_sample
from flcore_bench.tuning import Tuning

SIZES = {"small": 256_000_000, "full": 512_000_000}
ROUNDS = {"small": 3, "full": 7}
OF_BARE = 0.85
"""The goal of each of our streams: how much of a bare stream's speed it has."""

BARE = {
    "upload": {"bare, acknowledged": "upload, bare, acknowledged", "bare": "upload, bare"},
    "download": {"bare": "download, bare"},
}
"""What each direction is held against."""


def transport_rows(scale: str, threads: int) -> list[Row]:
    """Measure in a process of its own."""
    return [Row.from_json(row) for row in answer_of("flcore_bench.transport", scale, threads=threads)]


def measured_rows(size: int, rounds: int, tuning: Tuning, threads: int) -> list[Row]:
    """Measure every stream in turn, each server in a process of its own, and return a row for each."""
    tuning.apply()
    size -= size % (1024 * tuning.connections)
    with ExitStack() as stack:
        samples: dict[str, Sample] = {}
        samples |= stack.enter_context(bare_samples(size, tuning, threads))
        samples |= stack.enter_context(checked_samples(size, tuning, threads))
        for accumulate in ("float32", "exact"):
            samples |= stack.enter_context(folded_sample(size, accumulate, tuning, threads))
        taken = in_turn(samples, rounds)
    return [_row(name, taken, size, tuning) for name in sorted(taken, key=lambda name: not name.startswith("upload"))]


def in_turn(samples: dict[str, Sample], rounds: int) -> dict[str, list[float]]:
    """Take each sample once a round, in an order that turns by one place; one of each goes ahead and does not count."""
    taken: dict[str, list[float]] = {name: [] for name in samples}
    for name, sample in samples.items():
        measuring(name)
        sample()
    order = list(samples)
    for _ in range(rounds):
        for name in order:
            taken[name].append(samples[name]())
        order.append(order.pop(0))
    return taken


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
    """Be the process that measures, and print the rows as JSON."""
    scale, threads = sys.argv[1], int(sys.argv[2])
    rows = measured_rows(SIZES[scale], ROUNDS[scale], Tuning(), threads)
    print(json.dumps([row.to_json() for row in rows]))
