"""`flcore bench round-peers`: whole rounds of flcore, and the same of each peer, in the peer's own environment.

One tensor of float32, four clients in processes of their own, loopback, no training: a client returns what it was sent.
"""

from collections.abc import Mapping
from pathlib import Path

from flcore_bench.case import rows_of
from flcore_bench.child import answer_of
from flcore_bench.contests import default_python, source_roots
from flcore_bench.progress import measuring
from flcore_bench.round import SIZES_MB, round_row
from flcore_bench.round_cases import ROUND_CASES
from flcore_bench.row import Row, ratio

PEERS = {"nvflare": "NVFLARE", "flower": "Flower"}
CLIENTS = 4
ROUNDS = 3
"""Of each peer, the first of which warms up."""

OURS = 2
"""How many of the cases of `flcore bench round` are measured again: streaming in memory, float32 and exact."""


def round_peer_rows(scale: str, threads: int, pythons: Mapping[str, Path]) -> tuple[list[Row], list[str]]:
    """Return flcore's rows and the peers', and the names of the peers that are not installed."""
    ours = [round_row(scale), *rows_of(ROUND_CASES[:OURS], scale, threads)]
    theirs: list[Row] = []
    absent: list[str] = []
    for name in PEERS:
        measuring(f"rounds of {name}")
        found = peer_row(name, pythons.get(name) or default_python(name), SIZES_MB[scale] * 10**6, threads)
        if found is None:
            absent.append(name)
            continue
        theirs.append(found)
        for row in ours:
            row.against[PEERS[name]] = ratio(found.seconds, row.seconds)
    return ours + theirs, absent


def peer_row(name: str, python: Path, size: int, threads: int) -> Row | None:
    """Measure rounds of a model of `size` bytes in `python`; None where the peer is not installed there."""
    module = f"flcore_bench.peers.round_{name}"
    numbers = (str(size), str(CLIENTS), str(ROUNDS))
    answer = answer_of(module, *numbers, "own", threads=threads, python=python, environment=source_roots())
    if answer["absent"]:
        return None
    peaks = ", ".join(f"{process}'s peak {peak / 1e6:,.0f} MB" for process, peak in answer["peaks"].items())
    what = f"round, {PEERS[name]} {answer['version']}, {size // 10**6} MB x {CLIENTS} clients"
    return Row(what, answer["seconds"], 2 * CLIENTS * size, note=peaks)
