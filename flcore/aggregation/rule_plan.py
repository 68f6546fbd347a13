"""What a rule has decided for a round: which contributions are combined, and with which coefficients.

A plan is made once per round, before any element is combined. A `Sum` and `Columns` need weights alone; `Geometry` and
`Chain` first read all contributions for their figures.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from flcore.aggregation.admission_limits import require_positive_weight
from flcore.aggregation.contributions import Contribution
from flcore.aggregation.rule_calls import MIN_COEFFICIENT
from flcore.errors import AggregationError
from flcore.rules.effect import RuleEffect
from flcore.rules.kinds import Chain, Columns, Stage, Sum
from flcore.rules.points import Matrix, Mixture, Points


@dataclass(frozen=True)
class RulePlan:
    """How the contributions of a round are combined.

    Attributes:
        contributions: Those that count.
        coefficients: One per contribution: cᵢ of a sum; the weight for `Columns` without shares.
        rest: The coefficient of what is neither: the base, or zeros (`rests_on_base`).
        rests_on_base: Whether the rest is that of the base. In differences, the base is zeros.
        columns: The rule that combines columns; None for a sum.
        shares: M × N, the points that `columns` gets: Σₙ sharesₘₙ · contributionₙ + restₘ · base. None: contributions.
        weights: One weight per point, or per contribution without shares.
        effects: What the rule did to a client's update, by its name.
    """

    contributions: Sequence[Contribution]
    coefficients: Sequence[float]
    rest: float = 0.0
    rests_on_base: bool = False
    columns: Columns | None = None
    shares: Matrix | None = None
    weights: Sequence[float] = ()
    effects: Mapping[str, RuleEffect] = field(default_factory=dict)


def needs(chain: Chain) -> str:
    """Return what is measured for a chain: "distances", "norms" or "nothing"."""
    wanted = [stage.needs for stage in chain.stages]
    # The norm of a mean of updates follows from the distances between them.
    follows_mixing = any("norms" in wanted[k + 1 :] for k, need in enumerate(wanted) if need != "norms")
    if "distances" in wanted or follows_mixing:
        return "distances"
    return "norms" if "norms" in wanted else "nothing"


def chain_plan(
    chain: Chain,
    contributions: Sequence[Contribution],
    squared: Matrix,
    tie_keys: Callable[[], Sequence[str]],
    seed: int,
) -> RulePlan:
    """Return the plan of a chain, from the squared distances of the contributions and the base.

    Raises:
        AggregationError: A stage returned something else than a mixture, or its code failed.
        WeightError: All weights are zero.
    """
    names = [contribution.client for contribution in contributions]
    points = Points(names, [contribution.weight for contribution in contributions], squared, tie_keys, seed)
    shares, effects = np.eye(points.count), dict[str, RuleEffect]()
    for number, stage in enumerate(chain.stages):
        mixture = _call(chain, stage, points)
        effects |= _effects_on_clients(mixture, points, shares, names)
        shares = mixture.shares if not number else mixture.after(shares)
        points = points.mixed(mixture) if number + 1 < len(chain.stages) else _weighted(points, mixture)
    counted = {name for name, column in zip(names, shares.T, strict=True) if column.any()}
    effects = {name: effect for name, effect in effects.items() if effect.kind != "excluded" or name not in counted}
    if isinstance(chain.rule, Columns):
        return _plan_of_columns(chain.rule, contributions, shares, points.weights, effects, tie_keys)
    return _plan_of_sum(chain.rule, contributions, shares, points.weights, effects)


def _call(chain: Chain, stage: Stage, points: Points) -> Mixture:
    """Return a stage's mixture, checked: stages may be user code."""
    try:
        mixture = stage.mix(points)
    except AggregationError:
        raise
    except Exception as error:  # user code may raise anything
        raise AggregationError(
            f"rule {chain.name!r}: stage {stage.name!r} raised {type(error).__name__}: {error}"
        ) from error
    shares = np.asarray(mixture.shares, np.float64)
    is_valid = shares.ndim == 2 and shares.shape[1] == points.count and len(mixture.weights) == len(shares) > 0
    if not is_valid or not np.isfinite(shares).all() or (shares < 0).any() or (mixture.rests < 0).any():
        raise AggregationError(
            f"rule {chain.name!r}: stage {stage.name!r}: expected rows of {points.count} shares >= 0 that add up to at "
            "most 1, and a weight for each row"
        )
    return mixture


def _effects_on_clients(
    mixture: Mixture, points: Points, shares: Matrix, names: Sequence[str]
) -> dict[str, RuleEffect]:
    """Return a stage's effects by client: those on a row of several clients, such as a bucket, are on each of them."""
    effects: dict[str, RuleEffect] = {}
    for k, effect in mixture.effects.items():
        is_client = points.names[k] in names
        members = (
            [points.names[k]] if is_client else [name for name, share in zip(names, shares[k], strict=True) if share]
        )
        effects |= dict.fromkeys(members, effect)
    return effects


def _weighted(points: Points, mixture: Mixture) -> Points:
    """Return the points of the last stage, whose distances nobody asks for."""
    names = mixture.names or points.names
    return Points(names, mixture.weights, np.empty((0, 0)), lambda: names, points.seed)


def _plan_of_columns(
    rule: Columns,
    contributions: Sequence[Contribution],
    shares: Matrix,
    weights: Sequence[float],
    effects: Mapping[str, RuleEffect],
    tie_keys: Callable[[], Sequence[str]],
) -> RulePlan:
    used = [k for k in range(len(contributions)) if shares[:, k].any()]
    if (np.count_nonzero(shares, axis=1) > 1).any():  # a sum of floats, whose rounding depends on its order
        keys = tie_keys()
        used.sort(key=lambda k: (keys[k], tuple(shares[:, k])))
    kept, chosen = [contributions[k] for k in used], shares[:, used]
    if chosen.shape[0] == chosen.shape[1] and (chosen == np.eye(len(used))).all():
        return RulePlan(kept, weights, columns=rule, weights=weights, effects=effects)
    ones = [1.0] * len(kept)
    return RulePlan(
        kept,
        ones,
        rests_on_base=True,
        columns=rule,
        shares=np.ascontiguousarray(chosen),
        weights=weights,
        effects=effects,
    )


def _plan_of_sum(
    rule: Sum,
    contributions: Sequence[Contribution],
    shares: Matrix,
    weights: Sequence[float],
    effects: Mapping[str, RuleEffect],
) -> RulePlan:
    """Return the plan of Σₘ weightₘ · pointₘ / Σₘ weightₘ as a sum of contributions."""
    factors = [float(rule.coefficient(weight)) for weight in weights]
    require_positive_weight(factors)
    totals = [math.fsum(factor * share for factor, share in zip(factors, column, strict=True)) for column in shares.T]
    rests = Mixture(shares, weights).rests
    rest = math.fsum(factor * left for factor, left in zip(factors, rests.tolist(), strict=True))
    # A power of two, so that no bit is rounded: coefficients are then at most 1, for which elements were admitted.
    scale = 2.0 ** -math.frexp(max(*totals, rest))[1]
    scaled = [total * scale for total in totals]
    used = [k for k, value in enumerate(scaled) if value >= MIN_COEFFICIENT]
    rest = rest * scale if rest * scale >= MIN_COEFFICIENT else 0.0
    return RulePlan(
        [contributions[k] for k in used], [scaled[k] for k in used], rest, rests_on_base=True, effects=effects
    )
