"""What `flcore bench` runs: measurements of flcore beside what the machine can do, in one run.

Benchmarks are hard: machines are shared, clocks drift, and the authors of a benchmark like their own code. So both
sides of a ratio are measured in turn within one run, medians are shown with the spread, and the machine is named.
"""

from flcore_bench.kernels import fold_benchmark
from flcore_bench.machine import Machine, describe_machine, read_bandwidth
from flcore_bench.round import RoundFigures, round_benchmark
from flcore_bench.run import run
from flcore_bench.table import Row, print_table

__all__ = [
    "Machine",
    "RoundFigures",
    "Row",
    "describe_machine",
    "fold_benchmark",
    "print_table",
    "read_bandwidth",
    "round_benchmark",
    "run",
]
