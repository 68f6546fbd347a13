"""A rule of each kind: the adapters know kinds, and no names."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

import flcore


def nearest_to_the_mean(columns: Sequence[npt.NDArray[Any]]) -> npt.NDArray[np.float64]:
    stacked = np.stack(columns).astype(np.float64)
    squares: npt.NDArray[np.float64] = np.square(stacked - stacked.mean(axis=0)).sum(axis=1)
    return squares


RULES: dict[str, Any] = {
    "a sum": "mean",
    "a sum of one's own": flcore.Sum("roots", np.sqrt),
    "columns": "median",
    "columns with an argument": "trimmed_mean(f=2)",
    "columns of one's own": flcore.Columns("middle", lambda columns, _: np.median(np.stack(columns), axis=0)),
    "geometry of one's own": flcore.Geometry(
        "nearest", nearest_to_the_mean, lambda squares, weights: np.eye(len(weights))[np.argmin(squares)]
    ),
}
