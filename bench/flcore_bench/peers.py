"""`flcore bench peers` and `round-peers`: flcore next to other frameworks, each in an environment of its own.

The code that runs in a peer's environment is the package `flcore_bench_peers`. It is part of a source checkout only.
"""

import sys
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

import flcore_kernels
import flcore_transport

import flcore
from flcore import FlcoreError
from flcore_bench.case import rows_of
from flcore_bench.process import run_in_process
from flcore_bench.report import Row, ratio
from flcore_bench.round import ROUND_CASES, SIZES_MB, round_row
from flcore_bench.timing import report_progress

PEERS = {"torch": "pytorch", "nvflare": "nvidia_flare", "flower": "flower", "numpy": "plain_numpy"}
"""The module of `flcore_bench_peers` for each name that `--python NAME=PATH` takes."""

FRAMEWORKS = {"nvflare": "NVFLARE", "flower": "Flower"}
"""The peers that run whole rounds, and for which flcore has an adapter."""

ENVIRONMENTS = Path(".peers")
"""Where `make bench-peers` creates an environment for each peer."""

MEANS = {"own": "its own mean", "float32": "flcore float32", "exact": "flcore exact"}
CLIENTS = 4
ROUNDS = 3
"""Rounds of a framework. The first warms up."""

OWN_CASES = 2
"""How many cases of `flcore bench round` are measured next to the peers' rounds: streaming in float32 and exact."""


class CheckoutRequired(FlcoreError):
    """Peers are measured from a source checkout, and this is an installed wheel."""


def require_checkout() -> None:
    """Raise `CheckoutRequired` where the peers' runners are not installed."""
    if find_spec("flcore_bench_peers") is None:
        raise CheckoutRequired(
            "comparisons with other frameworks run from a source checkout, and this is an installed wheel: "
            "clone the repository, and run make bench-peers there"
        )


def peer_rows(scale: str, threads: int, pythons: Mapping[str, Path]) -> tuple[list[Row], list[str]]:
    """Measure aggregation with flcore and with each peer, and each framework with flcore's adapter.

    Args:
        scale: "small" or "full".
        threads: Threads of flcore and of PyTorch.
        pythons: Interpreters of peers' environments that replace the default ones.

    Returns:
        All rows, and the names of the peers that are not installed.

    Raises:
        CheckoutRequired: This is an installed wheel.
    """
    require_checkout()
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
        if name in FRAMEWORKS:
            rows += drop_in_rows(name, python, scale, threads, source_roots())
    return rows, absent


def round_peer_rows(scale: str, threads: int, pythons: Mapping[str, Path]) -> tuple[list[Row], list[str]]:
    """Measure whole rounds of flcore and of each framework: one float32 tensor, four clients, no training.

    Args, results and errors are those of `peer_rows`. Clients are processes of their own on loopback.
    """
    require_checkout()
    ours = [round_row(scale), *rows_of(ROUND_CASES[:OWN_CASES], scale, threads)]
    theirs: list[Row] = []
    absent: list[str] = []
    for name, title in FRAMEWORKS.items():
        report_progress(f"rounds of {name}")
        found = framework_row(name, pythons.get(name) or default_python(name), SIZES_MB[scale] * 10**6, threads)
        if found is None:
            absent.append(name)
            continue
        theirs.append(found)
        for row in ours:
            row.against[title] = ratio(found.seconds, row.seconds)
    return ours + theirs, absent


def default_python(name: str) -> Path:
    """Return the interpreter that `make bench-peers` installed for a peer, or else this one."""
    made = ENVIRONMENTS / name / "bin" / "python"
    return made if made.is_file() else Path(sys.executable)


def contest(name: str, python: Path, scale: str, threads: int) -> list[Row] | None:
    """Measure one peer's means next to flcore's in `python`; None where the peer is not installed there."""
    module = "flcore_bench_peers.contest"
    answer = run_in_process(module, PEERS[name], scale, threads=threads, python=python, environment=source_roots())
    return None if answer["absent"] else [Row.from_json(row) for row in answer["rows"]]


def drop_in_rows(name: str, python: Path, scale: str, threads: int, environment: dict[str, str]) -> list[Row]:
    """Measure one framework with its own mean and with flcore's adapter: aggregation alone, then whole rounds."""

    def run(module: str, *arguments: str) -> Any:
        module = f"flcore_bench_peers.{module}"
        return run_in_process(module, *arguments, threads=threads, python=python, environment=environment)

    report_progress(f"aggregation in {name}, its own and ours")
    rows = [Row.from_json(row) for row in run("drop_in", PEERS[name], scale)]
    size = SIZES_MB[scale] * 10**6
    own: Row | None = None
    for mean, what in MEANS.items():
        report_progress(f"rounds of {name} with {what}")
        found = run(f"round_{name}", str(size), str(CLIENTS), str(ROUNDS), mean)
        shape = f"{size // 10**6} MB x {CLIENTS} clients"
        row = Row(
            f"round, {FRAMEWORKS[name]} {found['version']}, {shape}: {what}",
            found["seconds"],
            note=f"{median(found['aggregation']):.2f} s in aggregation; {_peaks(found)}",
        )
        own = own or row
        if row is not own:
            row.against["its own"] = ratio(own.seconds, row.seconds)
        rows.append(row)
    return rows


def framework_row(name: str, python: Path, size: int, threads: int) -> Row | None:
    """Measure rounds of a model of `size` bytes in `python`; None where the framework is not installed there."""
    module = f"flcore_bench_peers.round_{name}"
    numbers = (str(size), str(CLIENTS), str(ROUNDS))
    answer = run_in_process(module, *numbers, "own", threads=threads, python=python, environment=source_roots())
    if answer["absent"]:
        return None
    what = f"round, {FRAMEWORKS[name]} {answer['version']}, {size // 10**6} MB x {CLIENTS} clients"
    return Row(what, answer["seconds"], 2 * CLIENTS * size, note=_peaks(answer))


def source_roots() -> dict[str, str]:
    """Return a PYTHONPATH of this checkout, so that a peer's environment measures this very code.

    Empty where flcore runs from site-packages: the path would make every other package there visible, too.
    """
    files = [flcore.__file__, flcore_kernels.__file__, flcore_transport.__file__, __file__]
    roots = dict.fromkeys(Path(str(file)).resolve().parents[1] for file in files)
    if any("site-packages" in root.parts for root in roots):
        return {}
    return {"PYTHONPATH": ":".join(str(root) for root in roots)}


def _peaks(found: Any) -> str:
    return ", ".join(f"{process}'s peak {peak / 1e6:,.0f} MB" for process, peak in found["peaks"].items())
