"""The measurements behind `flcore bench`, by name."""

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

from flcore_bench.contests import peer_rows
from flcore_bench.kernels import kernel_rows
from flcore_bench.machine import available_cores, describe_machine
from flcore_bench.memory import memory_rows
from flcore_bench.on_device import cuda_rows
from flcore_bench.plot import plot
from flcore_bench.report import Report
from flcore_bench.round import round_rows
from flcore_bench.round_peers import round_peer_rows
from flcore_bench.row import Row
from flcore_bench.setup import Setup
from flcore_bench.transport import transport_rows


def run(
    what: str,
    scale: str,
    *,
    threads: int | None = None,
    json_file: Path | None = None,
    plot_file: Path | None = None,
    pythons: Mapping[str, Path] | None = None,
    backend: str = "cpu",
) -> Report:
    """Measure `what`, as `flcore bench` knows it, print a table, and write the files that are asked for.

    `pythons` has the interpreters of the peers' environments; `backend` is whose kernels are measured.
    Raises `LimitBeaten`, at full scale, after all is printed and written.
    """
    setup = Setup.of(scale, threads or available_cores())
    named = what if backend == "cpu" else f"{what} --backend {backend}"
    rows, absent = _rows(named, setup, pythons or {})
    report = Report(
        command=f"flcore bench {named} --scale {scale} --threads {setup.threads}",
        date=datetime.now(UTC).date().isoformat(),
        scale=scale,
        rounds=setup.rounds if what in ("kernels", "peers") else len(rows[0].seconds),
        threads=setup.threads,
        machine=describe_machine(),
        rows=rows,
        absent=absent,
    )
    print(report.text())
    if json_file is not None:
        report.write(json_file)
    report.require_limits()
    if plot_file is not None:
        plot(rows, plot_file)
    return report


def _rows(what: str, setup: Setup, pythons: Mapping[str, Path]) -> tuple[list[Row], list[str]]:
    if what in (contests := {"peers": peer_rows, "round-peers": round_peer_rows}):
        return contests[what](setup.scale, setup.threads, pythons)
    sections = {
        "kernels": kernel_rows,
        "kernels --backend cuda": cuda_rows,
        "transport": transport_rows,
        "round": round_rows,
        "memory": memory_rows,
    }
    return sections[what](setup.scale, setup.threads), []
