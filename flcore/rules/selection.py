"""Rules that select updates by their distances to the others: Krum and its kin.

A selection is a row of shares per selected update, in the order of the updates. Ties go to the smaller client name, and
for updates without names to the smaller digest.
"""

import math
from collections.abc import Sequence
from itertools import combinations
from typing import Literal

import numpy as np

from flcore.errors import AggregationError, JobError
from flcore.rules.arguments import require_bool, require_count
from flcore.rules.effect import RuleEffect
from flcore.rules.kinds import MEAN, Chain, Stage
from flcore.rules.order import mean_around_median
from flcore.rules.points import Matrix, Mixture, Points

Neighbours = Literal["paper", "byzfl"]

MAX_SUBSETS = 200_000
"""The largest number of subsets that `mda` compares, which takes some seconds. 20 updates with f = 9 have 167,960."""


def krum(f: int, *, neighbours: Neighbours = "paper") -> Chain:
    """The update that is nearest to its neighbours (Blanchard et al., 2017, arXiv:1703.02757).

    score_i = the sum of ||update_i - update_j||^2 over the n - f - 2 updates j that are nearest to i. The result is the
    update of the smallest score. neighbours="byzfl" counts n - f - 1 of them, as the library ByzFL does.

    Tolerance: f hostile updates. Needs 2f + 3 updates or more.
    Weights: ignored, as one update is chosen. Integers: excluded from distances, taken from the chosen update.
    Memory: the plan batch. Passes over the updates: 1, and one over the chosen update.
    """
    needed = _require("krum", f, neighbours)

    def mix(points: Points) -> Mixture:
        scores = krum_scores(points.between, f, neighbours)
        return _selection(points, points.ordered(scores)[:1], scores, "score", weighted=False)

    name = f"krum({_arguments(f, neighbours)})"
    return Chain(name, (Stage(name, mix, min_updates=needed, rows=lambda _: 1),), MEAN)


def multi_krum(f: int, *, m: int | None = None, neighbours: Neighbours = "paper", weighted: bool = True) -> Chain:
    """The mean of the m updates with the smallest scores of `krum` (Blanchard et al., 2017, arXiv:1703.02757).

    m is n - f by default.

    Tolerance: f hostile updates. Needs 2f + 3 updates or more, and m of them.
    Weights: those of the selected updates count by default, so bound them (`max_share`). weighted=false ignores them.
    Integers: excluded from distances, averaged over the selected updates.
    Memory: the plan batch. Passes over the updates: 2, the second one over the selected ones.
    """
    needed = _require("multi_krum", f, neighbours)
    require_bool("multi_krum", "weighted", weighted)
    if m is not None:
        needed = max(needed, require_count("multi_krum", "m", m))

    def mix(points: Points) -> Mixture:
        scores = krum_scores(points.between, f, neighbours)
        selected = points.ordered(scores)[: points.count - f if m is None else m]
        return _selection(points, selected, scores, "score", weighted=weighted)

    rest = [f"m={m}"] * (m is not None) + ["weighted=false"] * (not weighted)
    name = f"multi_krum({_arguments(f, neighbours, *rest)})"
    stage = Stage(name, mix, min_updates=needed, rows=lambda count: count - f if m is None else m)
    return Chain(name, (stage,), MEAN)


def bulyan(f: int) -> Chain:
    """Selection by Krum, then the mean of the values around the median (El Mhamdi et al., 2018, arXiv:1802.07927).

    n - 2f updates are selected one after the other: each time the one of the smallest Krum score among those that are
    left. Of them, each coordinate of the result is the mean of the n - 4f values that are nearest to the median.

    Tolerance: f hostile updates. Needs 4f + 3 updates or more.
    Weights: ignored. Integers: excluded from distances, rounded half to even.
    Memory: the plan batch. Passes over the updates: 2.
    """
    require_count("bulyan", "f", f)

    def mix(points: Points) -> Mixture:
        left, selected = list(range(points.count)), list[int]()
        first = krum_scores(points.between, f, "paper")
        while len(selected) < points.count - 2 * f:
            scores = dict(zip(left, krum_scores(points.between[np.ix_(left, left)], f, "paper"), strict=True))
            best = points.ordered([scores.get(k, math.inf) for k in range(points.count)], left)[0]
            selected.append(best)
            left.remove(best)
        return _selection(points, selected, first, "score", weighted=False)

    name = f"bulyan(f={f})"
    stage = Stage(name, mix, min_updates=4 * f + 3, rows=lambda count: count - 2 * f)
    return Chain(name, (stage,), mean_around_median(name, lambda count: count - 2 * f))


def mda(f: int, *, weighted: bool = True) -> Chain:
    """Minimum diameter averaging (El Mhamdi et al., 2020, arXiv:1905.03853): for few updates.

    The mean of the n - f updates whose largest distance to each other is smallest. All subsets are compared, so there
    may be at most 200,000.

    Tolerance: f hostile updates. Needs 2f + 1 updates or more.
    Weights: those of the selected updates count by default, so bound them (`max_share`). weighted=false ignores them.
    Integers: excluded from distances, averaged over the selected updates.
    Memory: the plan batch. Passes over the updates: 2, the second one over the selected ones.
    """
    require_count("mda", "f", f)
    require_bool("mda", "weighted", weighted)

    def mix(points: Points) -> Mixture:
        subsets = math.comb(points.count, f)
        if subsets > MAX_SUBSETS:
            raise AggregationError(
                f"rule 'mda': {points.count} updates have {subsets:,} subsets of {points.count - f}, and at most "
                f"{MAX_SUBSETS:,} are compared: use multi_krum or geometric_median"
            )
        between = points.between.tolist()
        found = [
            (max((between[i][j] for i, j in combinations(subset, 2)), default=0.0), subset)
            for subset in combinations(range(points.count), points.count - f)
        ]
        least = min(diameter for diameter, _ in found)
        best = [subset for diameter, subset in found if diameter == least]
        keys = points.tie_keys() if len(best) > 1 else [""] * points.count
        selected = min(best, key=lambda subset: sorted(keys[k] for k in subset))
        reach = [math.sqrt(max(between[k][j] for j in selected)) for k in range(points.count)]
        return _selection(points, selected, reach, "distance", weighted=weighted)

    name = f"mda({_arguments(f, 'paper', *['weighted=false'] * (not weighted))})"
    stage = Stage(name, mix, min_updates=2 * f + 1, rows=lambda count: count - f)
    return Chain(name, (stage,), MEAN)


def krum_scores(squared: Matrix, f: int, neighbours: Neighbours) -> list[float]:
    """Return the Krum score of each of n points: the sum of its smallest squared distances to others.

    n - f - 2 of them, or n - f - 1 with neighbours="byzfl", and at least one.
    """
    count = len(squared)
    near = max(1, count - f - (2 if neighbours == "paper" else 1))
    others = [[value for j, value in enumerate(row) if j != i] for i, row in enumerate(squared.tolist())]
    return [math.fsum(sorted(distances)[:near]) for distances in others]


def _selection(
    points: Points, selected: Sequence[int], figures: Sequence[float], measure: str, *, weighted: bool
) -> Mixture:
    """Return the mixture of the selected points, in the order of all points."""
    chosen = sorted(selected)
    effects = {
        k: RuleEffect("excluded", 0.0, figures[k], measure) for k in range(points.count) if k not in set(selected)
    }
    weights = [points.weights[k] for k in chosen] if weighted else []
    if not any(weights):  # points without any weight count alike, as those of `nnm` do
        weights = [1.0] * len(chosen)
    return Mixture(np.eye(points.count)[chosen], weights, effects, [points.names[k] for k in chosen])


def _require(rule: str, f: int, neighbours: str) -> int:
    """Return the number of updates that a rule with Krum scores needs."""
    require_count(rule, "f", f)
    if neighbours not in ("paper", "byzfl"):
        raise JobError(f'{rule}: neighbours is "paper" (n - f - 2) or "byzfl" (n - f - 1), got {neighbours!r}')
    return 2 * f + 3


def _arguments(f: int, neighbours: str, *rest: str) -> str:
    return ", ".join([f"f={f}", *(['neighbours="byzfl"'] * (neighbours != "paper")), *rest])
