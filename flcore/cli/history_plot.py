"""The plot of a run: the global model's metric per round, beside the baselines."""

from importlib.util import find_spec
from pathlib import Path

from flcore.cli.run_table import best_alone, metric_name
from flcore.job.contract import Contract
from flcore.server.history import RoundRecord
from flcore.simulation.baselines import Baselines


def plot_history(
    contract: Contract, history: list[RoundRecord], baselines: Baselines | None, path: Path
) -> Path | None:
    """Draw the validated metric of each round to a PNG file.

    Returns its path, or None where there is nothing to draw or matplotlib is missing.
    """
    if no_plot_reason(contract, history):
        return None
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    metric, points = _metric_by_round(contract, history)
    figure = Figure(figsize=(7.5, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.plot(*zip(*points, strict=True), color="#1f5fa8", linewidth=2, label="federated")
    if baselines is not None:
        best = best_alone(contract, baselines.alone.values())
        axes.axhline(baselines.centralised, color="#3a7d44", linestyle="--", label="all data in one place")
        axes.axhline(best, color="#b5482a", linestyle=":", linewidth=2, label="best client alone")
    axes.set(xlabel="round", ylabel=metric, title=f"{contract.name}: {len(contract.client_names)} clients")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="upper left", bbox_to_anchor=(0, -0.14), ncols=3, frameon=False)  # below: it covers no line
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    return path


def no_plot_reason(contract: Contract, history: list[RoundRecord]) -> str:
    """Return why there is no plot, or "" if there can be one."""
    metric, points = _metric_by_round(contract, history)
    if not points:
        return (
            "not drawn: the job has no task that validates" if metric is None else f"not drawn: no round has {metric}"
        )
    if find_spec("matplotlib") is None:
        return "not drawn: matplotlib is not installed; it comes with flcore's extra plot"
    return ""


def _metric_by_round(contract: Contract, history: list[RoundRecord]) -> tuple[str | None, list[tuple[int, float]]]:
    """Return the metric that is drawn, and its value by round."""
    metric = metric_name(contract, history)
    return metric, [(record.round, record.validate[metric]) for record in history if metric in record.validate]
