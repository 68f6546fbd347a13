"""Clipping: stages that bound the norm of each update, its distance to the base, so that none can move the result far.

An update of norm r becomes base + min(1, bound / r) · (update - base). Integers are not part of a norm, and are scaled
with the other tensors.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np

from flcore.errors import JobError
from flcore.rules.arguments import require_bool, require_count, require_number
from flcore.rules.effect import RuleEffect
from flcore.rules.kinds import MEAN, UNWEIGHTED_MEAN, Chain, Stage
from flcore.rules.points import Mixture, Points

Bound = Callable[[Points], float]


def clip_norm(max_norm: float | None = None, *, quantile: float | None = None) -> Stage:
    """Clip each update to a norm: a fixed one, or a quantile of the norms of the round.

    update_i becomes base + min(1, bound / norm_i) * (update_i - base), with norm_i = ||update_i - base||, as in
    McMahan et al., 2018 (arXiv:1710.06963). The quantile is the smallest norm that this share of the updates does not
    exceed; 0.5 is the median norm.

    Tolerance: none alone; it bounds what one update can do. Before a robust rule, it helps against scaled updates.
    Weights: kept. Integers: excluded from the norm, scaled with the rest.
    Memory: the plan batch. Passes over the updates: 1, and those of the rule that follows.
    """
    bound = _bound("clip_norm", max_norm, quantile)
    return _clipping(_name("clip_norm", max_norm, quantile), bound)


def clipped_mean(max_norm: float | None = None, *, quantile: float | None = None, weighted: bool = True) -> Chain:
    """The mean of clipped updates: `clip_norm`, then `mean`.

    result = base + sum of w_i * min(1, bound / norm_i) * (update_i - base) / sum of w_i.

    Tolerance: an update moves the result by at most its share of the weight times the bound.
    Weights: count by default. weighted=false ignores them. Integers: excluded from the norm, scaled with the rest.
    Memory: the plan batch. Passes over the updates: 2.
    """
    require_bool("clipped_mean", "weighted", weighted)
    bound = _bound("clipped_mean", max_norm, quantile)
    name = _name("clipped_mean", max_norm, quantile, "" if weighted else "weighted=false")
    return Chain(name, (_clipping(name, bound),), MEAN if weighted else UNWEIGHTED_MEAN)


def arc(f: int) -> Stage:
    """Adaptive robust clipping (Allouah et al., 2025, arXiv:2405.14432, Algorithm 1).

    The k = floor(2 * f * (n - f) / n) updates of the largest norms are clipped to the next smaller norm.

    Tolerance: that of the rule that follows, which it keeps. Needs 2f + 1 updates or more.
    Weights: kept. Integers: excluded from the norm, scaled with the rest.
    Memory: the plan batch. Passes over the updates: 1, and those of the rule that follows.
    """
    require_count("arc", "f", f)

    def bound(points: Points) -> float:
        clipped = 2 * f * (points.count - f) // points.count
        return sorted(points.norms)[points.count - clipped - 1]

    return _clipping(f"arc(f={f})", bound, 2 * f + 1)


def _clipping(name: str, bound: Bound, min_updates: int = 1) -> Stage:
    def mix(points: Points) -> Mixture:
        norms, limit = points.norms, bound(points)
        factors = [min(1.0, limit / norm) if norm > 0 else 1.0 for norm in norms]
        effects = {
            k: RuleEffect("clipped", factor, norm, "norm")
            for k, (factor, norm) in enumerate(zip(factors, norms, strict=True))
            if factor < 1
        }
        return Mixture(np.diag(factors), points.weights, effects)

    return Stage(name, mix, needs="norms", needs_base=True, min_updates=min_updates)


def _bound(rule: str, max_norm: float | None, quantile: float | None) -> Bound:
    if (max_norm is None) == (quantile is None):
        raise JobError(
            f"{rule}: expected one of max_norm and quantile, got {'neither' if max_norm is None else 'both'}"
        )
    if max_norm is not None:
        fixed = require_number(rule, "max_norm", max_norm, above=0.0)
        return lambda _: fixed
    share = require_number(rule, "quantile", quantile, above=0.0, most=1.0)
    return lambda points: _quantile(points.norms, share)


def _quantile(norms: Sequence[float], share: float) -> float:
    """Return the smallest norm that a share of all norms does not exceed.

    >>> _quantile([3.0, 1.0, 2.0, 4.0], 0.5)
    2.0
    """
    return sorted(norms)[max(1, math.ceil(share * len(norms) - 1e-9)) - 1]


def _name(rule: str, max_norm: float | None, quantile: float | None, rest: str = "") -> str:
    bound = f"max_norm={max_norm:g}" if max_norm is not None else f"quantile={quantile:g}"
    return f"{rule}({', '.join(part for part in (bound, rest) if part)})"
