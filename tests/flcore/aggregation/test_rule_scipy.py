"""The geometric median and the trimmed mean beside SciPy, where it is installed."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from flcore import aggregate

optimize = pytest.importorskip("scipy.optimize")
stats = pytest.importorskip("scipy.stats")

Reals = npt.NDArray[np.float64]


def combined(rows: Reals, weights: Reals, rule: str) -> Any:
    return aggregate([({"w": row}, weight) for row, weight in zip(rows, weights, strict=True)], rule=rule)["w"]


@pytest.mark.parametrize("far", [1.0, 1e3, 1e6])
@pytest.mark.parametrize("count", [1, 2, 3, 4, 7, 12])
def test_no_point_that_an_optimizer_finds_is_nearer_to_all_updates(count: int, far: float) -> None:
    rng = np.random.default_rng(count)
    for size in (1, 2, 9):
        rows, weights = rng.standard_normal((count, size)), rng.uniform(0.5, 2.0, count)
        rows[: (count - 1) // 4] *= far

        def total(point: Reals, rows: Reals = rows, weights: Reals = weights) -> float:
            return float(weights @ np.linalg.norm(rows - point, axis=1))

        found = combined(rows, weights, "geometric_median(smoothing=1e-9)")
        starts = [found, np.median(rows, axis=0), *rows]
        best = min(
            optimize.minimize(total, start, method="Nelder-Mead", options={"xatol": 1e-10, "fatol": 1e-12}).fun
            for start in starts
        )
        assert total(found) <= best + 1e-5 * weights.sum()  # the iteration is slow where two points nearly balance


@pytest.mark.parametrize("f", [1, 2, 4])
def test_the_trimmed_mean_is_that_of_scipy(f: int) -> None:
    rng = np.random.default_rng(f)
    for count in range(2 * f + 1, 14):
        rows = rng.standard_cauchy((count, 30))
        wanted = stats.trim_mean(rows, (f + 1e-9) / count, axis=0)  # SciPy rounds the number down
        found = combined(rows, np.ones(count), f"trimmed_mean(f={f}, weighted=false)")
        assert np.allclose(found, wanted, rtol=1e-12, atol=1e-12)
