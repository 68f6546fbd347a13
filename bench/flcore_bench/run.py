"""The measurements behind `flcore bench`, by name."""

from pathlib import Path
from statistics import median

from flcore_bench.kernels import fold_benchmark
from flcore_bench.machine import describe_machine
from flcore_bench.round import round_benchmark
from flcore_bench.table import Row, print_table, write_json


def run(what: str, scale: str, json_file: Path | None) -> None:
    """Measure `what` ("kernels" or "round"), print a table, and write it to a file if one is given."""
    machine = describe_machine()
    rows = fold_benchmark(scale) if what == "kernels" else [_round_row(scale)]
    print_table(f"flcore bench {what} --scale {scale}", machine, rows)
    if json_file is not None:
        write_json(json_file, what, machine, rows)


def _round_row(scale: str) -> Row:
    figures = round_benchmark(scale)
    taken = figures.seconds
    return Row(
        f"round, {figures.megabytes} MB x {figures.clients} clients",
        median(taken),
        (min(taken), max(taken)),
        figures.bytes_per_s,
        None,
        f"server's peak {figures.server_peak_bytes / 1e6:,.0f} MB",
    )
