"""The memory that a server may take, in bytes, whatever the number of its clients: flcore's own formula."""

from flcore_bench.federated import Federated
from flcore_bench.inside import DEFAULT_BUDGET, Budget


def bound(run: Federated) -> int:
    """Return the bound of a run's plan: at close the budget alone, streaming two models and a total besides."""
    budget = Budget(int(run.options.get("budget_bytes", DEFAULT_BUDGET.nbytes)))
    return budget.peak_bytes(str(run.options.get("plan", "at-close")), run.spec, run.accumulate)
