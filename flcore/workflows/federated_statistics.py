"""Federated statistics: counts, means, variances, histograms and quantiles of columns that stay at their sites.

The quantile sketch is DDSketch (Masson, Rim and Lee, 2019, PVLDB 12(12), arXiv:1908.10693). Mean and variance follow
from those of the sites by the law of total variance.

`job.toml` of a job that describes two columns, of which one has a histogram:

    [server]
    model = "flcore.statistics:no_model"
    workflow = "federated_statistics"
    rounds = 1
    quorum = 3                          # sites that must be connected

    [client]
    executor = "columns.py"             # its function `statistics` calls `flcore.statistics.site_statistics`

    [tasks.statistics]
    returns = "metrics"
    hyperparameters = { min_count = 10, relative_error = 0.01, quantiles = [0.05, 0.95], bins = { age = [40, 60] } }

    [bounds]
    max_metrics = 10_000                # one for each bin and each bucket of the sketch
"""

from flcore.server.controller import Controller
from flcore.server.evaluation import require_answers, sites_without
from flcore.statistics.merged_statistics import SiteColumn, merge_parts, parse_part
from flcore.statistics.plan import StatisticsPlan

TASK = "statistics"


def federated_statistics(control: Controller) -> None:
    """Have all connected clients describe their columns, and add the descriptions up.

    Groups of fewer than `min_count` values are suppressed at the sites. A site whose answer is no valid description, or
    has a smaller group, is left out.

    `results.json` has the statistics by column (`columns`), the sites that they are of (`sites`), those that are left
    out with the reasons (`refused`), and those without an answer (`missing`). The job fails if no site is left.
    """
    plan = StatisticsPlan.of(control.job.contract.hyperparameters(TASK, 1))
    for _ in control.rounds():
        clients = control.sample(fraction=1.0)
        answers = control.collect(clients, TASK)
        parts: dict[str, dict[str, SiteColumn]] = {}
        refused: dict[str, str] = {}
        for client, answer in answers.items():
            try:
                parts[client] = parse_part(answer.metrics, plan)
            except ValueError as error:
                refused[client] = str(error)
        control.save_results(
            {
                "workflow": "federated_statistics",
                "min_count": plan.min_count,
                "relative_error": plan.relative_error,
                "sites": list(parts),
                "refused": refused,
                "missing": sites_without(control.job.contract, clients, answers),
                "columns": merge_parts(parts, plan),
            }
        )
        require_answers(TASK, parts)
