"""Reports of runs: figures, one HTML file for a run, and comparisons. They are made from what a run's directory holds.

Figures need matplotlib, which is flcore's extra `plot`. They are in `flcore.reports.figures` and
`flcore.reports.comparison_figure`, which are imported where they are drawn.
"""

from flcore.reports.comparison import Comparison, compare_runs
from flcore.reports.comparison_page import comparison_page
from flcore.reports.html_report import report_page, write_page
from flcore.reports.reported_run import ReportedRun, read_reported_run

__all__ = [
    "Comparison",
    "ReportedRun",
    "compare_runs",
    "comparison_page",
    "read_reported_run",
    "report_page",
    "write_page",
]
