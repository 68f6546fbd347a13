"""The robustness bound of Allouah et al., 2023 (arXiv:2302.01772), checked for every subset of honest updates.

Definition 2: a rule is (f, kappa)-robust if for all vectors x_1 ... x_n and each set S of n - f of them
||R(x) - mean_S||^2 <= kappa / |S| * sum over i in S of ||x_i - mean_S||^2. Weights do not count here.
"""

import os
from collections.abc import Callable
from itertools import combinations
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pytest

from flcore import aggregate

Reals = npt.NDArray[np.float64]

CASES = int(os.environ.get("FLCORE_BOUND_CASES", "25"))
"""How many rounds are drawn per rule: 2,000 in `make stress`."""

MOST = 11


class Bounded(NamedTuple):
    """A rule, the smallest number of updates beside 2f, and kappa(n, f)."""

    rule: str
    beside: int
    kappa: Callable[[int, int], float]


def of_a_median(n: int, f: int) -> float:
    """The paper's kappa of the geometric median and of the coordinate-wise median."""
    return 4 * (1 + f / (n - 2 * f)) ** 2


def of_a_trimmed_mean(n: int, f: int) -> float:
    """The paper's kappa of the trimmed mean."""
    return 6 * f / (n - 2 * f) * (1 + f / (n - 2 * f))


def of_krum(n: int, f: int) -> float:
    """The paper's kappa of Krum, which counts n - f - 1 neighbours there.

    The proof holds for Multi-Krum with m <= n - f: the mean of the m smallest scores is at most that of n - f honest
    ones, and the square of a mean is at most the mean of squares.
    """
    return 6 * (1 + f / (n - 2 * f))


def of_krum_with_fewer_neighbours(n: int, f: int) -> float:
    """The same proof with n - f - 2 neighbours: of an update and these, n - 2f - 1 are honest, and not n - 2f."""
    return 6 * (n - f) / (n - 2 * f - 1)


RULES = [
    Bounded("krum(f={f})", 3, of_krum_with_fewer_neighbours),
    Bounded('krum(f={f}, neighbours="byzfl")', 3, of_krum),
    Bounded("multi_krum(f={f}, weighted=false)", 3, of_krum_with_fewer_neighbours),
    Bounded("multi_krum(f={f}, m=2, weighted=false)", 3, of_krum_with_fewer_neighbours),
    Bounded("median(weighted=false)", 1, of_a_median),
    Bounded("trimmed_mean(f={f}, weighted=false)", 1, of_a_trimmed_mean),
    Bounded("geometric_median(weighted=false)", 1, of_a_median),
]


def behind_nnm(given: Bounded) -> Bounded:
    """The paper's bound of a rule behind nearest-neighbour mixing."""
    return Bounded(
        f"nnm(f={{f}}, weighted=false) + {given.rule}",
        given.beside,
        lambda n, f: 8 * f / (n - f) * (given.kappa(n, f) + 1),
    )


def drawn(rng: np.random.Generator, n: int, f: int) -> Reals:
    """Return n points: honest ones of some shape, and f hostile ones near, far or equal to each other."""
    size = int(rng.integers(1, 7))
    honest = rng.standard_normal((n, size))
    match rng.integers(5):
        case 0:
            honest = np.rint(2 * honest)  # with ties
        case 1:
            honest = honest * 10.0 ** rng.integers(-3, 3, (n, 1))  # of many norms
        case 2:
            honest = 100 + 1e-3 * honest  # almost equal
        case 3:
            honest[:] = honest[0]  # equal
    points = honest.copy()
    far = 10.0 ** rng.integers(-1, 13)
    match rng.integers(4):
        case 0:
            points[:f] = honest[f:].mean(axis=0) + far * rng.standard_normal((f, size))
        case 1:
            points[:f] = honest[f:].mean(axis=0) - far * honest[f:].std(axis=0)  # a little is enough (ALIE)
        case 2:
            points[:f] = -far * honest[f:].mean(axis=0)
        case 3:
            points[:f] = honest[-1]  # mimic
    return points[rng.permutation(n)]


def worst(points: Reals, found: Reals, f: int, rounding: float) -> tuple[float, float]:
    """Return ||R - mean_S||^2 and the mean of ||x_i - mean_S||^2 for the subset with the largest ratio."""
    subsets = points[list(combinations(range(len(points)), len(points) - f))]
    means = subsets.mean(axis=1)
    errors = ((found - means) ** 2).sum(axis=1)
    spreads = ((subsets - means[:, None]) ** 2).sum(axis=2).mean(axis=1)
    spreads += (rounding * np.abs(subsets).max(axis=(1, 2))) ** 2 + np.finfo(float).tiny
    k = int(np.argmax(errors / spreads))
    return float(errors[k]), float(spreads[k])


@pytest.mark.parametrize("given", [*RULES, *map(behind_nnm, RULES)], ids=lambda given: given.rule)
def test_no_subset_of_honest_updates_is_farther_from_the_result_than_the_bound(given: Bounded) -> None:
    rng = np.random.default_rng(23)
    for _ in range(CASES):
        f = int(rng.integers(1, (MOST - given.beside) // 2 + 1))
        n = int(rng.integers(2 * f + given.beside, MOST + 1))
        dtype, rounding = [(np.float64, 1e-11), (np.float32, 1e-6)][int(rng.integers(2))]
        points = drawn(rng, n, f).astype(dtype)
        found = aggregate([({"w": point}, 1.0) for point in points], rule=given.rule.format(f=f))["w"]
        error, spread = worst(points.astype(np.float64), found.astype(np.float64), f, rounding)
        assert error <= given.kappa(n, f) * spread * (1 + 1e-9), (f, error / spread, points.tolist())
