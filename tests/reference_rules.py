"""The oracle of rules: the papers' equations in float64 NumPy, over whole models as vectors, for few updates.

Nothing here is taken from flcore: rules and stages compute on vectors, where flcore computes on distances. Points are
sorted by the clients' names, so of two that are alike the first one wins.
"""

import random
from collections.abc import Callable, Sequence
from itertools import combinations
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Reals = npt.NDArray[np.float64]


class Points(NamedTuple):
    """Updates as differences to the base, one per row; `measured`: the elements that distances count."""

    rows: Reals
    weights: Reals
    measured: npt.NDArray[np.bool_]
    seed: int = 0

    @property
    def n(self) -> int:
        return len(self.rows)

    @property
    def norms(self) -> Reals:
        return distances(self, np.zeros(self.rows.shape[1]))

    @property
    def plain(self) -> "Points":
        """The same points with equal weights."""
        return self._replace(weights=np.ones(self.n))

    def chosen(self, indices: Sequence[int]) -> "Points":
        kept = sorted(indices)
        return self._replace(rows=self.rows[kept], weights=self.weights[kept])


def distances(points: Points, centre: Reals) -> Reals:
    """Return the distance of each point to a centre."""
    return np.asarray(np.linalg.norm((points.rows - centre)[:, points.measured], axis=1))


# Rules.


def mean(points: Points) -> Reals:
    return np.asarray(points.weights @ points.rows / points.weights.sum())


def median(points: Points) -> Reals:
    """Per coordinate: the mean of the smallest and the largest value with at most half of the weight on either side."""
    found = []
    for column in points.rows.T:
        is_middle = [
            max(points.weights[column < value].sum(), points.weights[column > value].sum()) <= points.weights.sum() / 2
            for value in column
        ]
        middle = column[np.array(is_middle) & (points.weights > 0)]
        found.append((middle.min() + middle.max()) / 2)
    return np.array(found)


def trimmed_mean(points: Points, f: int) -> Reals:
    """Per coordinate: the weights lie side by side on a line, in the order of values; f / n is cut off at both ends."""
    cut, found = f / points.n * points.weights.sum(), []
    for column in points.rows.T:
        order = np.argsort(column, kind="stable")
        ends = np.cumsum(points.weights[order])
        clipped = np.clip([ends - points.weights[order], ends], cut, ends[-1] - cut)
        kept = clipped[1] - clipped[0]
        found.append(kept @ column[order] / kept.sum())
    return np.array(found)


def around_median(points: Points, keep: int) -> Reals:
    """Per coordinate: the mean of the values nearest to the median; of two equally near ones, the smaller counts."""
    found = []
    for column in points.rows.T:
        middle = np.median(column)
        found.append(np.mean(sorted(column, key=lambda value: (abs(value - middle), value))[:keep]))
    return np.array(found)


def meamed(points: Points, f: int) -> Reals:
    return around_median(points, points.n - f)


def krum_scores(points: Points, f: int, neighbours: int = 2) -> list[float]:
    """Return each point's sum of squared distances to its n - f - `neighbours` nearest others, at least one."""
    near = max(1, points.n - f - neighbours)
    return [float((np.sort(distances(points, row))[1 : near + 1] ** 2).sum()) for row in points.rows]


def krum_order(points: Points, f: int, neighbours: int = 2) -> list[int]:
    scores = krum_scores(points, f, neighbours)
    return sorted(range(points.n), key=lambda k: (scores[k], k))


def krum(points: Points, f: int, neighbours: int = 2) -> Reals:
    return np.asarray(points.rows[krum_order(points, f, neighbours)[0]])


def multi_krum(points: Points, f: int, m: int | None = None) -> Reals:
    return mean(points.chosen(krum_order(points, f)[: m or points.n - f]))


def bulyan(points: Points, f: int) -> Reals:
    left, selected = list(range(points.n)), list[int]()
    while len(selected) < points.n - 2 * f:
        selected.append(left.pop(krum_order(points.chosen(left), f)[0]))
    return around_median(points.chosen(selected), points.n - 4 * f)


def mda(points: Points, f: int) -> Reals:
    between = np.array([distances(points, row) for row in points.rows])
    subsets = list(combinations(range(points.n), points.n - f))
    return mean(points.chosen(min(subsets, key=lambda subset: (between[np.ix_(subset, subset)].max(), subset))))


def geometric_median(points: Points) -> Reals:
    """Weiszfeld's iteration, with the modification of Vardi and Zhang (2000) by which it leaves a point, if it must."""
    start = np.median(points.rows, axis=0)
    points = points._replace(rows=points.rows - start)
    shares, centre = points.weights / points.weights.sum(), np.zeros_like(start)
    for _ in range(20_000):
        apart = distances(points, centre)
        is_here = apart <= 1e-14 * np.median(apart)
        if is_here.all():
            break
        pulls = np.where(is_here, 0.0, shares / np.where(is_here, 1.0, apart))
        step = pulls @ points.rows / pulls.sum()
        pull = np.linalg.norm(pulls @ (points.rows - centre)[:, points.measured])
        stays = min(1.0, shares[is_here].sum() / pull) if pull else 1.0
        moved = (1 - stays) * (step - centre)
        centre = centre + moved
        if np.linalg.norm(moved) <= 1e-12 * np.median(apart):
            break
    return start + centre


def centered_clip(points: Points, radius: float, iterations: int = 3) -> Reals:
    centre = np.zeros(points.rows.shape[1])
    for _ in range(iterations):
        apart = distances(points, centre)
        factors = np.minimum(1, radius / np.where(apart > 0, apart, 1.0))
        centre = centre + (points.weights * factors) @ (points.rows - centre) / points.weights.sum()
    return centre


# Stages: points in, points out.


def clipped_to(points: Points, bound: float) -> Points:
    factors = np.minimum(1, bound / np.where(points.norms > 0, points.norms, 1.0))
    return points._replace(rows=factors[:, None] * points.rows)


def clip_quantile(points: Points, share: float) -> Points:
    """Clip to the smallest norm that at least this share of the norms does not exceed."""
    bounds = [norm for norm in points.norms if np.mean(points.norms <= norm) >= share]
    return clipped_to(points, min(bounds))


def arc(points: Points, f: int) -> Points:
    clipped = int(np.floor(2 * f * (points.n - f) / points.n))
    return clipped_to(points, float(np.sort(points.norms)[::-1][clipped]))


def nnm(points: Points, f: int) -> Points:
    rows = []
    for k, row in enumerate(points.rows):
        apart = distances(points, row)
        near = sorted(range(points.n), key=lambda j: (j != k, apart[j], j))[: points.n - f]
        rows.append(mean(points.chosen(near)))
    return points._replace(rows=np.array(rows))


def bucketing(points: Points, size: int) -> Points:
    """Shuffle by the seed, with Python's own generator, and take means of runs of `size`."""
    order = list(range(points.n))
    random.Random(points.seed).shuffle(order)
    buckets = [points.chosen(order[first : first + size]) for first in range(0, points.n, size)]
    rows, weights = [mean(bucket) for bucket in buckets], [bucket.weights.sum() for bucket in buckets]
    return points._replace(rows=np.array(rows), weights=np.array(weights))


def unweighted(stage: Callable[[Points], Points]) -> Callable[[Points], Points]:
    """Return a stage as one whose means ignore the weights, which its points keep."""
    return lambda points: stage(points.plain)._replace(weights=points.weights)
