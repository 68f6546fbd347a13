"""A fresh process that combines checkpoints with the least budget, and tells what memory that took."""

from flcore_bench.inside import Budget, aggregate_checkpoints
from flcore_bench.machine import peak_bytes
from flcore_bench.process import setup_from_parent, tell_parent


def main() -> None:
    """Combine the setup's checkpoints into one."""
    setup = setup_from_parent()
    aggregate_checkpoints(setup["paths"], setup["out"], budget=Budget.parse(setup.get("budget", "64MiB")))
    tell_parent({"peak_bytes": peak_bytes()})
