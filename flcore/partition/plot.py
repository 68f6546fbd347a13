"""A picture of a partition: who has how many examples of which label."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from flcore.errors import PartitionError
from flcore.model.model_paths import PathLike
from flcore.partition.labels import label_counts

MAX_LEGEND, MAX_NAMES = 20, 40
"""More labels have a colour bar instead of a legend; of more clients, only some names are shown."""


def plot_partition(
    labels: Any,
    partition: Sequence[npt.ArrayLike],
    path: PathLike,
    *,
    names: Sequence[str] | None = None,
    title: str = "",
) -> None:
    """Draw a bar for each client, with a part for each label. Needs matplotlib (flcore's extra `plot`).

    Args:
        labels: One label per example.
        partition: For each client, the indices of its examples.
        path: The file; its suffix is the format, such as `.png`, `.svg` or `.pdf`.
        names: The clients' names. Default: None, client-1 and so on.
        title: The title. Default: the numbers of clients and examples.

    Raises:
        PartitionError: The labels are invalid, the names are not as many as the clients, or matplotlib is not
            installed or does not know the format.
        OSError: The file cannot be written.
    """
    values, counts = label_counts(labels, partition)
    names = [f"client-{number}" for number in range(1, len(counts) + 1)] if names is None else names
    if len(names) != len(counts):
        raise PartitionError(f"names: expected one for each of {len(counts)} clients, got {len(names)}")
    try:
        import matplotlib as mpl
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise PartitionError(f"a plot needs matplotlib, which comes with flcore's extra plot: {error}") from error
    colors = mpl.colormaps["tab10" if len(values) <= 10 else "tab20" if len(values) <= MAX_LEGEND else "viridis"]
    height = max(
        min(12.0, 1.4 + 0.3 * len(counts)), 1.0 + 0.23 * min(len(values), MAX_LEGEND)
    )  # inches, with the legend
    figure = Figure(figsize=(7.5, height), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    begins = counts.cumsum(axis=1) - counts
    for column, value in enumerate(values):
        shade = colors(column if len(values) <= MAX_LEGEND else column / (len(values) - 1))
        name = f" {value}" if str(value).startswith("_") else str(value)  # matplotlib's legend leaves out "_name"
        held = np.flatnonzero(counts[:, column])  # empty bars would take most of the time
        axes.barh(held, counts[held, column], left=begins[held, column], color=shade, label=name)
    axes.set_ylim(-0.6, len(counts) - 0.4)
    shown = range(0, len(counts), -(-len(counts) // MAX_NAMES))
    axes.set_yticks(list(shown), [names[position] for position in shown])
    axes.invert_yaxis()
    axes.set(
        xlabel="examples", title=title or f"{counts.sum():,} examples of {len(values)} labels, {len(counts)} clients"
    )
    axes.spines[["top", "right"]].set_visible(False)
    if len(values) <= MAX_LEGEND:
        figure.legend(loc="outside right upper", frameon=False, title="label")
    try:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=150)
    except ValueError as error:
        raise PartitionError(f"{path}: cannot be drawn: {error}") from error
