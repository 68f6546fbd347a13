"""Stages that average updates with each other before a rule: what hostile updates can do to a rule shrinks.

A mixed point takes the place of an update. Distances are those of floats; integers are averaged with the other tensors.
"""

import math
import random
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from flcore.rules.arguments import require_bool, require_count
from flcore.rules.effect import RuleEffect
from flcore.rules.kinds import Stage
from flcore.rules.points import Mixture, Points


def nnm(f: int, *, weighted: bool = True) -> Stage:
    """Nearest-neighbour mixing (Allouah et al., 2023, arXiv:2302.01772, Algorithm 2).

    Each update is replaced by the mean of the n - f updates that are nearest to it, itself among them.

    Tolerance: f hostile updates, with a rule that tolerates them. Needs f + 1 updates or more.
    Weights: neighbours count by their weights by default, so bound them (`max_share`). weighted=false ignores them in
    these means. An update keeps its weight.
    Integers: excluded from distances, averaged with the rest.
    Memory: the plan batch. Passes over the updates: 1, and those of the rule that follows.
    """
    require_count("nnm", "f", f)
    require_bool("nnm", "weighted", weighted)

    def mix(points: Points) -> Mixture:
        shares = np.zeros((points.count, points.count))
        for k, row in enumerate(points.between.tolist()):
            others = [j for j in range(points.count) if j != k]
            near = [k, *points.ordered(row, others)[: points.count - f - 1]]
            shares[k] = _mean_shares(points, near, weighted=weighted)
        reach = [math.sqrt(sorted(row)[points.count - f - 1]) for row in points.between.tolist()]
        alone = [k for k in range(points.count) if not shares[:, k].any()]
        effects = {k: RuleEffect("excluded", 0.0, reach[k], "distance") for k in alone}
        return Mixture(shares, points.weights, effects)

    return Stage(f"nnm(f={f}{'' if weighted else ', weighted=false'})", mix, min_updates=f + 1)


def bucketing(size: int = 2, *, weighted: bool = True) -> Stage:
    """Means of random buckets of `size` updates (Karimireddy et al., 2022, arXiv:2006.09365, Algorithm 1).

    The updates are shuffled, by the seed of the run and the round, and each `size` of them become their mean. The last
    bucket may have fewer.

    Tolerance: f hostile updates spoil at most f buckets: the rule that follows must tolerate f of n / size.
    Weights: updates count by their weights in a bucket, which has the sum of them. weighted=false ignores them.
    Integers: averaged with the rest.
    Memory: the plan batch. Passes over the updates: that of the rule that follows.
    """
    require_count("bucketing", "size", size, 2)
    require_bool("bucketing", "weighted", weighted)

    def mix(points: Points) -> Mixture:
        order = sorted(range(points.count), key=points.tie_keys().__getitem__)
        random.Random(points.seed).shuffle(order)  # noqa: S311 - not for secrets
        buckets = [sorted(order[first : first + size]) for first in range(0, points.count, size)]
        shares = np.array([_mean_shares(points, bucket, weighted=weighted) for bucket in buckets])
        weights = [math.fsum(points.weights[k] for k in bucket) if weighted else 1.0 for bucket in buckets]
        names = [" + ".join(points.names[k] for k in bucket) for bucket in buckets]
        return Mixture(shares, weights, {}, names)

    name = f"bucketing(size={size}{'' if weighted else ', weighted=false'})"
    return Stage(name, mix, needs="nothing", rows=lambda count: -(-count // size))


def _mean_shares(points: Points, members: Sequence[int], *, weighted: bool) -> npt.NDArray[np.float64]:
    """Return the shares of a mean of some points. Points without any weight count alike."""
    weights = [points.weights[k] for k in members] if weighted else []
    if not any(weights):
        weights = [1.0] * len(members)
    shares, total = np.zeros(points.count), math.fsum(weights)
    shares[list(members)] = [weight / total for weight in weights]
    return shares
