"""Rules that look for a centre of the updates, by iteration on their distances: no element is read for it."""

import math

import numpy as np

from flcore.aggregation.points import Matrix, Mixture, Points
from flcore.aggregation.rule_arguments import require_bool, require_count, require_number
from flcore.aggregation.rule_effect import RuleEffect
from flcore.aggregation.rule_kinds import MEAN, Chain, Stage

MAX_ITERATIONS = 1000
TOLERANCE = 1e-9
"""The iteration of `geometric_median` ends when no share has changed by more than this."""


def geometric_median(*, smoothing: float = 1e-6, weighted: bool = True) -> Chain:
    """The point with the smallest weighted sum of distances to the updates (Pillutla et al., 2022, arXiv:1912.13445).

    Smoothed Weiszfeld: z starts as the weighted mean. Then z = sum of b_i * update_i / sum of b_i, with
    b_i = w_i / max(nu, ||z - update_i||), until no share changes by more than 1e-9. Here nu is `smoothing` times the
    weighted mean distance of the updates to their mean, so scaling all updates scales the result; in the paper nu is
    1e-6. The distances of z follow from those of the updates, so the iteration reads no element.

    Tolerance: hostile updates with less than half of the weight. With weighted=false, fewer than half of the updates.
    Weights: count by default, so bound them (`max_share`). weighted=false ignores them.
    Integers: excluded from distances, averaged with the weights that are found.
    Memory: the plan batch. Passes over the updates: 2.
    """
    share = require_number("geometric_median", "smoothing", smoothing, above=0.0, most=1.0)
    require_bool("geometric_median", "weighted", weighted)

    def mix(points: Points) -> Mixture:
        weights = list(points.weights) if weighted and any(points.weights) else [1.0] * points.count
        start = _normalised(weights)
        shares, distances = start, _distances(points.between, start)
        nu = share * math.fsum(part * distance for part, distance in zip(start, distances, strict=True))
        for _ in range(MAX_ITERATIONS if nu > 0 else 0):
            before = shares
            shares = _normalised([weight / max(nu, d) for weight, d in zip(weights, distances, strict=True)])
            distances = _distances(points.between, shares)
            if max(abs(new - old) for new, old in zip(shares, before, strict=True)) <= TOLERANCE:
                break
        effects = {
            k: RuleEffect("scaled", shares[k] / start[k], distances[k], "distance")
            for k in range(points.count)
            if start[k] > 0
        }
        return Mixture(np.array([shares]), [1.0], effects, ["the geometric median"])

    name = ", ".join([f"smoothing={smoothing:g}"] * (smoothing != 1e-6) + ["weighted=false"] * (not weighted))
    name = f"geometric_median({name})" if name else "geometric_median"
    return Chain(name, (Stage(name, mix, rows=lambda _: 1),), MEAN)


def centered_clip(radius: float, *, iterations: int = 3, weighted: bool = True) -> Chain:
    """Centred clipping (Karimireddy et al., 2021, arXiv:2012.10333, Algorithm 2).

    v starts at the base. Then v = v + sum of w_i * min(1, radius / ||update_i - v||) * (update_i - v) / sum of w_i,
    `iterations` times. (In the paper, v starts at the result of the round before.)

    Tolerance: an update moves the result by at most its share of the weight times radius * iterations.
    Weights: count by default. weighted=false ignores them.
    Integers: excluded from distances, averaged with the weights that are found.
    Memory: the plan batch. Passes over the updates: 2.
    """
    reach = require_number("centered_clip", "radius", radius, above=0.0)
    require_count("centered_clip", "iterations", iterations)
    require_bool("centered_clip", "weighted", weighted)

    def mix(points: Points) -> Mixture:
        weights = _normalised(list(points.weights) if weighted and any(points.weights) else [1.0] * points.count)
        shares = [0.0] * points.count + [1.0]  # those of the updates, and of the base
        factors, distances = [1.0] * points.count, [0.0] * points.count
        for _ in range(iterations):
            distances = _distances(points.squared, shares)[:-1]
            factors = [min(1.0, reach / distance) if distance > 0 else 1.0 for distance in distances]
            moved = [weight * factor for weight, factor in zip(weights, factors, strict=True)]
            kept = 1 - math.fsum(moved)
            shares = [kept * share + step for share, step in zip(shares, [*moved, 0.0], strict=True)]
        effects = {
            k: RuleEffect("clipped", factors[k], distances[k], "distance")
            for k in range(points.count)
            if factors[k] < 1
        }
        return Mixture(np.array([shares[:-1]]), [1.0], effects, ["the centre"])

    rest = [f"iterations={iterations}"] * (iterations != 3) + ["weighted=false"] * (not weighted)
    name = f"centered_clip({', '.join([f'radius={radius:g}', *rest])})"
    return Chain(name, (Stage(name, mix, needs_base=True, rows=lambda _: 1),), MEAN)


def _normalised(weights: list[float]) -> list[float]:
    total = math.fsum(weights)
    return [weight / total for weight in weights]


def _distances(squared: Matrix, shares: list[float]) -> list[float]:
    """Return the distance of each point to z = Σ sharesⱼ · pointⱼ, whose shares add up to 1.

    ‖z - pointᵢ‖² = Σⱼ sharesⱼ · squaredᵢⱼ - ½ Σⱼₖ sharesⱼ · sharesₖ · squaredⱼₖ.
    """
    sums = [math.fsum(row) for row in squared * np.array(shares)]
    half = math.fsum(share * row for share, row in zip(shares, sums, strict=True)) / 2
    return [math.sqrt(max(0.0, row - half)) for row in sums]
