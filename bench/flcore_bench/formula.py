"""The memory that a server may take, in bytes, whatever the number of its clients."""

from flcore_bench.federated import Federated

TOTAL_BYTES = {"float32": 4.0, "float64": 8.0, "exact": 16.03}
"""Of a streaming total, per parameter."""

PROCESS_BYTES = 320 << 20
"""Python, gRPC, Numba, and what is on its way."""


def bound(run: Federated) -> float:
    """Return the bound of a run's plan: at close the budget alone, streaming two models and a total besides."""
    budget = float(run.options.get("budget_bytes", 0))
    if run.options.get("plan", "at-close") == "at-close":
        return budget + PROCESS_BYTES
    total = TOTAL_BYTES[run.accumulate] * run.spec.parameters
    return 2 * run.model_bytes + total + budget + PROCESS_BYTES
