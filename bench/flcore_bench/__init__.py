"""What `flcore bench` runs: measurements of flcore beside what the machine can do, in one run.

Benchmarks are hard: machines are shared, clocks drift, and the authors of a benchmark like their own code. So both
sides of a ratio are measured in turn within one process, medians are shown with the spread, the limit of the same run
stands beside them, and the machine is named.
"""

from flcore_bench.child import MeasurementFailed
from flcore_bench.contests import PEERS
from flcore_bench.limit import limit_cases, measured_limit
from flcore_bench.machine import Machine, describe_machine
from flcore_bench.plot import NothingToPlot
from flcore_bench.report import LimitBeaten, Report
from flcore_bench.round import RoundFigures, round_benchmark
from flcore_bench.row import Goal, Limit, Row
from flcore_bench.run import run
from flcore_bench.setup import Setup
from flcore_bench.timing import interleaved

__all__ = [
    "PEERS",
    "Goal",
    "Limit",
    "LimitBeaten",
    "Machine",
    "MeasurementFailed",
    "NothingToPlot",
    "Report",
    "RoundFigures",
    "Row",
    "Setup",
    "describe_machine",
    "interleaved",
    "limit_cases",
    "measured_limit",
    "round_benchmark",
    "run",
]
