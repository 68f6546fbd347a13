"""`flcore bench peers`: flcore beside each peer, and in place of its own mean, in the peer's own environment."""

import sys
from collections.abc import Mapping
from pathlib import Path

import flcore_kernels
import flcore_transport

import flcore
from flcore_bench.child import answer_of
from flcore_bench.drop_in import ADAPTERS, drop_in_rows
from flcore_bench.row import Row

PEERS = {"torch": "pytorch", "nvflare": "nvidia_flare", "flower": "flower", "numpy": "plain_numpy"}
"""The file of `flcore_bench.peers` for each name that `--python NAME=PATH` takes."""

ENVIRONMENTS = Path(".peers")
"""Where `make bench-peers` puts an environment for each."""


def peer_rows(scale: str, threads: int, pythons: Mapping[str, Path]) -> tuple[list[Row], list[str]]:
    """Return all rows, and the names of the peers that are not installed."""
    rows: list[Row] = []
    absent: list[str] = []
    for name in PEERS:
        python = pythons.get(name) or default_python(name)
        print(f"measuring beside {name}", file=sys.stderr, flush=True)
        found = contest(name, python, scale, threads)
        if found is None:
            absent.append(name)
            continue
        rows += found
        if name in ADAPTERS:
            rows += drop_in_rows(name, python, scale, threads, source_roots())
    return rows, absent


def default_python(name: str) -> Path:
    """Return the interpreter that `make bench-peers` made for a peer, or else this one."""
    made = ENVIRONMENTS / name / "bin" / "python"
    return made if made.is_file() else Path(sys.executable)


def contest(name: str, python: Path, scale: str, threads: int) -> list[Row] | None:
    """Run one contest in `python`, which has flcore's dependencies; None where the peer is not installed there."""
    module = "flcore_bench.peers.contest"
    answer = answer_of(module, PEERS[name], scale, threads=threads, python=python, environment=source_roots())
    return None if answer["absent"] else [Row.from_json(row) for row in answer["rows"]]


def source_roots() -> dict[str, str]:
    """Return where this flcore's sources are, so that each contest measures this very code, installed there or not.

    Where it runs from site-packages, nothing is passed on: everything else that lies there would come along.
    """
    files = [flcore.__file__, flcore_kernels.__file__, flcore_transport.__file__, __file__]
    roots = dict.fromkeys(Path(str(file)).resolve().parents[1] for file in files)
    if any("site-packages" in root.parts for root in roots):
        return {}
    return {"PYTHONPATH": ":".join(str(root) for root in roots)}
