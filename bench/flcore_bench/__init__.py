"""The benchmarks of `flcore bench`: flcore next to the limit of the machine, measured in the same run.

Benchmarks are hard: machines are shared, clocks drift, and authors favour their own code. So both sides of a ratio are
timed interleaved in one process. Tables show medians with their spread, the limit of the same run, and the machine.
"""

from flcore_bench.attacks import ATTACKS
from flcore_bench.digit_clients import DigitsMissing
from flcore_bench.limit import limit_cases, measured_limit
from flcore_bench.machine import Machine, describe_machine
from flcore_bench.peers import PEERS, CheckoutRequired
from flcore_bench.plot import NothingToPlot
from flcore_bench.process import MeasurementFailed
from flcore_bench.report import Goal, Limit, LimitBeaten, Report, Row
from flcore_bench.robust import RobustSettings
from flcore_bench.robust_report import RobustReport
from flcore_bench.round import RoundFigures, round_benchmark
from flcore_bench.run import run, run_robust
from flcore_bench.timing import interleaved
from flcore_bench.workload import Sizes

__all__ = [
    "ATTACKS",
    "PEERS",
    "CheckoutRequired",
    "DigitsMissing",
    "Goal",
    "Limit",
    "LimitBeaten",
    "Machine",
    "MeasurementFailed",
    "NothingToPlot",
    "Report",
    "RobustReport",
    "RobustSettings",
    "RoundFigures",
    "Row",
    "Sizes",
    "describe_machine",
    "interleaved",
    "limit_cases",
    "measured_limit",
    "round_benchmark",
    "run",
    "run_robust",
]
