"""Rules that look for a centre of the updates, by iteration on their distances: no element is read for it."""

import math

import numpy as np

from flcore.rules.arguments import require_bool, require_count, require_number
from flcore.rules.effect import RuleEffect
from flcore.rules.kinds import MEAN, Chain, Stage
from flcore.rules.points import Matrix, Mixture, Points

MAX_ITERATIONS = 1000
TOLERANCE = 1e-9
"""The iteration of `geometric_median` ends when the centre has moved by no more than this, as a part of the radius."""


def geometric_median(*, smoothing: float = 1e-6, weighted: bool = True) -> Chain:
    """The point with the smallest weighted sum of distances to the updates (Pillutla et al., 2022, arXiv:1912.13445).

    Smoothed Weiszfeld: z starts as the weighted mean. Then z = sum of b_i * update_i / sum of b_i, with
    b_i = w_i / max(nu, ||z - update_i||), until z moves by less than 1e-9 of r, the smallest distance from an update
    within which more than half of the weight lies. Here nu is `smoothing` times r. So scaling all updates scales the
    result, and a hostile update cannot enlarge nu; in the paper nu is 1e-6. If more than half of the weight is at one
    point, the result is this point. The distances of z follow from those of the updates, so the iteration reads no
    element.

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
        centre, radius = _centre(points, start)
        products = _products(points.between, centre)
        if radius > 0:
            nu, shares = share * radius, start
        else:
            nu, shares = 1.0, _normalised([part * (points.between[centre, k] == 0) for k, part in enumerate(start)])
        distances, sizes = _distances(products, shares), np.sqrt(np.diag(products)).tolist()
        for _ in range(MAX_ITERATIONS if radius > 0 else 0):
            before = shares
            shares = _normalised([part / max(nu, d) for part, d in zip(start, distances, strict=True)])
            distances = _distances(products, shares)
            moved = [abs(new - old) * size for new, old, size in zip(shares, before, sizes, strict=True)]
            if math.fsum(moved) <= TOLERANCE * radius:
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
        products, shares = _products(points.squared, points.count)[:-1, :-1], [0.0] * points.count
        factors, distances = [1.0] * points.count, [0.0] * points.count
        for _ in range(iterations):
            distances = _distances(products, shares)
            factors = [min(1.0, reach / distance) if distance > 0 else 1.0 for distance in distances]
            moved = [weight * factor for weight, factor in zip(weights, factors, strict=True)]
            kept = 1 - math.fsum(moved)
            shares = [kept * share + step for share, step in zip(shares, moved, strict=True)]
        effects = {
            k: RuleEffect("clipped", factors[k], distances[k], "distance")
            for k in range(points.count)
            if factors[k] < 1
        }
        return Mixture(np.array([shares]), [1.0], effects, ["the centre"])

    rest = [f"iterations={iterations}"] * (iterations != 3) + ["weighted=false"] * (not weighted)
    name = f"centered_clip({', '.join([f'radius={radius:g}', *rest])})"
    return Chain(name, (Stage(name, mix, needs_base=True, rows=lambda _: 1),), MEAN)


def _normalised(weights: list[float]) -> list[float]:
    total = math.fsum(weights)
    return [weight / total for weight in weights]


def _centre(points: Points, shares: list[float]) -> tuple[int, float]:
    """Return the point with the smallest distance within which more than half of the weight lies, and this distance."""
    radii = []
    for row in points.between.tolist():
        order, reached = sorted(range(points.count), key=lambda k: (row[k], shares[k])), 0.0
        last = next((k for k in order if (reached := reached + shares[k]) > 0.5), order[-1])
        radii.append(math.sqrt(row[last]))
    nearest = [k for k, radius in enumerate(radii) if radius == min(radii)]
    sums = [math.fsum(row * np.array(shares)) for row in points.between]
    return points.ordered(sums, nearest)[0], min(radii)


def _products(squared: Matrix, centre: int) -> Matrix:
    """Return the scalar products of the differences of all points to one of them.

    They are bounded by the norms: of a point that is far away, squared distances tell them to a rounding of its square.
    """
    norms = squared[centre]
    bounds = np.sqrt(norms[:, None]) * np.sqrt(norms)
    return np.asarray(np.clip(norms[:, None] / 2 + norms / 2 - squared / 2, -bounds, bounds))


def _distances(products: Matrix, shares: list[float]) -> list[float]:
    """Return the distance of each point to z = Σ sharesⱼ · pointⱼ; of shares, the origin of the products has the rest.

    ‖z - pointᵢ‖² = productsᵢᵢ - 2 · Σⱼ sharesⱼ · productsᵢⱼ + Σⱼₖ sharesⱼ · sharesₖ · productsⱼₖ. Terms of a point that
    is far away are no larger than the others, because its share is small.
    """
    sums = [math.fsum(row) for row in products * np.array(shares)]
    own = math.fsum(share * row for share, row in zip(shares, sums, strict=True))
    quarters = [square / 4 - row / 2 + own / 4 for square, row in zip(np.diag(products), sums, strict=True)]
    return [2 * math.sqrt(max(0.0, quarter)) for quarter in quarters]  # a whole square may be infinite
