"""The benchmarks of `flcore bench`, by name."""

import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from flcore_bench.cuda_kernels import cuda_rows
from flcore_bench.kernels import kernel_rows
from flcore_bench.machine import available_cores, describe_machine
from flcore_bench.memory import memory_rows
from flcore_bench.peers import peer_rows, round_peer_rows
from flcore_bench.plot import plot
from flcore_bench.processes import process_rows
from flcore_bench.report import Report, Row
from flcore_bench.robust import RobustSettings, cells
from flcore_bench.robust_plot import heat_map
from flcore_bench.robust_report import RobustReport
from flcore_bench.round import round_rows
from flcore_bench.rules import rule_rows
from flcore_bench.transport import transport_rows
from flcore_bench.workload import Sizes


def run(
    what: str,
    scale: str,
    *,
    threads: int | None = None,
    json_file: Path | None = None,
    plot_file: Path | None = None,
    pythons: Mapping[str, Path] | None = None,
    backend: str = "cpu",
    minutes: float | None = None,
) -> Report:
    """Run one benchmark, print its table, and write the requested files.

    Args:
        what: The benchmark: kernels, rules, peers, transport, round, processes, round-peers or memory.
        scale: "small" or "full".
        threads: Threads of flcore, the limit and peers (default: the available cores).
        json_file: Where to write all figures.
        plot_file: Where to write a plot.
        pythons: Interpreters of the peers' environments, by peer.
        backend: Which kernels are measured: "cpu" or "cuda".
        minutes: How long "processes" repeats its sides (default: by the scale).

    Returns:
        The report.

    Raises:
        LimitBeaten: A row at full scale was faster than its limit. The table is printed and the JSON written before.
        CheckoutRequired: Peers are measured from a source checkout, and this is an installed wheel.
    """
    sizes = Sizes.of(scale, threads or available_cores())
    named = what if backend == "cpu" else f"{what} --backend {backend}"
    rows, absent = _rows(named, sizes, pythons or {}, minutes)
    report = Report(
        command=f"flcore bench {named} --scale {scale} --threads {sizes.threads}",
        date=datetime.now(UTC).date().isoformat(),
        scale=scale,
        rounds=sizes.rounds if what in ("kernels", "rules", "peers") else len(rows[0].seconds),
        threads=sizes.threads,
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


def run_robust(
    settings: RobustSettings,
    *,
    options: Sequence[str] = (),
    json_file: Path | None = None,
    csv_file: Path | None = None,
    plot_file: Path | None = None,
) -> RobustReport:
    """Run `flcore bench robust`, print its table, and write the requested files.

    Args:
        settings: Rounds, clients, rules, attacks and the seed.
        options: The options that were given, for the report's command.
        json_file: Where to write everything.
        csv_file: Where to write the accuracies.
        plot_file: Where to draw the heat map.

    Returns:
        The report.

    Raises:
        flcore_bench.DigitsMissing: scikit-learn, which has the digits, is not installed.
        NothingToPlot: matplotlib is missing, or does not know the format. All else is printed and written before.
    """
    began = time.monotonic()
    found = list(cells(settings))
    report = RobustReport(
        command=shlex.join(["flcore", "bench", "robust", *options]),
        date=datetime.now(UTC).date().isoformat(),
        seconds=time.monotonic() - began,
        machine=describe_machine(),
        settings=settings,
        cells=found,
    )
    print(report.text())
    if json_file is not None:
        report.write_json(json_file)
    if csv_file is not None:
        report.write_csv(csv_file)
    if plot_file is not None:
        heat_map(report, plot_file)
    return report


def _rows(what: str, sizes: Sizes, pythons: Mapping[str, Path], minutes: float | None) -> tuple[list[Row], list[str]]:
    if what in (with_peers := {"peers": peer_rows, "round-peers": round_peer_rows}):
        return with_peers[what](sizes.scale, sizes.threads, pythons)
    sections: dict[str, Callable[[str, int], list[Row]]] = {
        "kernels": kernel_rows,
        "kernels --backend cuda": cuda_rows,
        "rules": rule_rows,
        "transport": transport_rows,
        "round": round_rows,
        "processes": partial(process_rows, minutes=minutes),
        "memory": memory_rows,
    }
    return sections[what](sizes.scale, sizes.threads), []
