"""The table at the end of a run."""

from collections.abc import Iterable

from rich.table import Table

from flcore.job.contract import Contract
from flcore.server.history import RoundRecord
from flcore.simulation.baselines import Baselines
from flcore.text import counted


def metric_name(contract: Contract, history: list[RoundRecord]) -> str | None:
    """Return the metric that compares models: that of `server.best`, else the first validated metric."""
    if contract.server.best is not None:
        return contract.server.best.partition(":")[0]
    return next(iter(history[-1].validate), None)


def comparison_table(contract: Contract, history: list[RoundRecord], baselines: Baselines | None) -> Table:
    """Return the table: each client alone, the federated model, and the centralised one, where there are baselines."""
    metric = metric_name(contract, history)
    table = Table(
        title=f"{contract.name}: {counted(len(history), 'round')}, {counted(len(contract.client_names), 'client')}"
    )
    table.add_column("model trained on")
    table.add_column(metric or "seconds a round", justify="right")
    if metric is None:
        table.add_row("all clients, federated", f"{history[-1].seconds['round']:.2f}")
        return table
    alone = {} if baselines is None else baselines.alone
    shown = dict(list(alone.items())[:12])
    for name, value in shown.items():
        table.add_row(f"{name} alone", f"{value:.3f}")
    if len(shown) < len(alone):
        table.add_row(f"the best of all {len(alone)} alone", f"{best_alone(contract, alone.values()):.3f}")
    federated = history[-1].validate.get(metric)
    table.add_row("all clients, federated", "none" if federated is None else f"{federated:.3f}", style="bold")
    if baselines is not None:
        table.add_row("all data in one place", f"{baselines.centralised:.3f}")
    return table


def best_alone(contract: Contract, values: Iterable[float]) -> float:
    """Return the best client's value: the lowest if `server.best` says that less is better, else the highest."""
    is_less_better = (contract.server.best or "").endswith(":min")
    return min(values) if is_less_better else max(values)
