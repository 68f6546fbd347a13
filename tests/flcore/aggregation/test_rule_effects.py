"""What a rule did to a client's update: who was excluded, clipped or scaled, with the figure that decided."""

from collections.abc import Mapping

import numpy as np
import pytest

from flcore import Aggregator, Model, ModelSpec, RuleEffect
from tests import reference_rules as oracle
from tests.flcore.aggregation.rule_examples import ALL, COLUMNS, SUMS
from tests.reference_rules import Points, Reals

NAMES = "abcdefg"


def points() -> Points:
    """Return seven points, of which the fourth is far away, and the seventh somewhat."""
    rows = np.random.default_rng(4).standard_normal((7, 12))
    rows[3] *= 30
    rows[6] *= 3
    return Points(rows, np.arange(1.0, 8.0), np.ones(12, np.bool_))


def combined(rule: str, given: Points, seed: int = 0) -> tuple[Mapping[str, RuleEffect], bytes]:
    """Return a rule's effects, and the bits of its result."""
    base = {"w": np.zeros(given.rows.shape[1])}
    aggregator = Aggregator(ModelSpec.of(base), rule=rule, base=Model.of(base), seed=seed)
    for name, row, weight in zip(NAMES, given.rows, given.weights, strict=True):
        with aggregator.update(client=name, weight=weight) as update:
            update.write("w", row)
    result = aggregator.finish().arrays()["w"].tobytes()
    return aggregator.effects, result


def effects_of(rule: str, given: Points, seed: int = 0) -> Mapping[str, RuleEffect]:
    return combined(rule, given, seed)[0]


def assert_effects(found: Mapping[str, RuleEffect], wanted: Mapping[str, RuleEffect]) -> None:
    assert found.keys() == wanted.keys()
    for name, effect in wanted.items():
        assert (found[name].kind, found[name].measure) == (effect.kind, effect.measure), name
        assert found[name].factor == pytest.approx(effect.factor, rel=1e-5), name
        assert found[name].figure == pytest.approx(effect.figure, rel=1e-5), name


def excluded(figures: Reals | list[float], measure: str, kept: list[int]) -> dict[str, RuleEffect]:
    return {NAMES[k]: RuleEffect("excluded", 0.0, figures[k], measure) for k in range(7) if k not in kept}


def clipped(figures: Reals, bound: float, measure: str) -> dict[str, RuleEffect]:
    return {
        NAMES[k]: RuleEffect("clipped", bound / figures[k], figures[k], measure) for k in range(7) if figures[k] > bound
    }


@pytest.mark.parametrize("rule", [*SUMS, *COLUMNS, "bucketing(size=2) + median"])
def test_a_rule_that_takes_all_updates_has_none(rule: str) -> None:
    assert not effects_of(rule, points())


def test_krum_and_its_kin_name_those_that_they_do_not_take_with_their_scores() -> None:
    given = points()
    order, scores = oracle.krum_order(given, 1), oracle.krum_scores(given, 1)
    assert_effects(effects_of("krum(f=1)", given), excluded(scores, "score", order[:1]))
    assert_effects(effects_of("multi_krum(f=1)", given), excluded(scores, "score", order[:6]))
    found = effects_of("bulyan(f=1)", given)
    assert len(found) == 2
    assert_effects(found, excluded(scores, "score", [k for k in range(7) if NAMES[k] not in found]))


def test_mda_names_the_excluded_with_the_distance_to_the_farthest_that_it_takes() -> None:
    given = points()
    reach = [max(oracle.distances(given.chosen([0, 1, 2, 4, 5, 6]), row)) for row in given.rows]
    assert_effects(effects_of("mda(f=1)", given), excluded(reach, "distance", [0, 1, 2, 4, 5, 6]))


def test_clipping_names_the_clipped_with_their_norms() -> None:
    given = points()
    norms = given.norms
    assert_effects(effects_of("clipped_mean(max_norm=4.0)", given), clipped(norms, 4.0, "norm"))
    assert_effects(effects_of("clip_norm(quantile=0.5) + mean", given), clipped(norms, np.sort(norms)[3], "norm"))
    assert_effects(effects_of("arc(f=1) + mean", given), clipped(norms, np.sort(norms)[5], "norm"))


def test_the_centre_of_clipping_decides_by_distance() -> None:
    given = points()
    apart = oracle.distances(given, oracle.centered_clip(given, 3.0, 2))
    assert_effects(effects_of("centered_clip(radius=3.0)", given), clipped(apart, 3.0, "distance"))


def test_the_geometric_median_tells_how_it_scaled_each_weight() -> None:
    given = points()
    apart = oracle.distances(given, oracle.geometric_median(given))
    factors = given.weights / apart / (given.weights / apart).sum() / (given.weights / given.weights.sum())
    found = effects_of("geometric_median", given)
    assert_effects(found, {NAMES[k]: RuleEffect("scaled", factors[k], apart[k], "distance") for k in range(7)})


def test_an_update_that_is_mixed_into_others_is_not_excluded_with_its_own_point() -> None:
    given = points()
    found = effects_of("nnm(f=1) + multi_krum(f=1)", given)
    used = {NAMES[k] for k in range(7) if k != 3}
    assert not used & found.keys()
    alone = effects_of("nnm(f=1) + krum(f=1)", given)
    assert {name: effect.kind for name, effect in alone.items()} == {"d": "excluded"}


def test_each_client_of_a_bucket_is_named() -> None:
    given = Points(np.random.default_rng(1).standard_normal((7, 12)), np.ones(7), np.ones(12, np.bool_))
    found = effects_of("bucketing(size=2) + mda(f=1)", given, 3)
    assert found.keys() <= set(NAMES) and 1 <= len(found) <= 2
    assert {effect.kind for effect in found.values()} == {"excluded"}


@pytest.mark.parametrize("rule", ALL)
def test_an_excluded_update_has_no_part_in_the_result(rule: str) -> None:
    given = points()
    effects, result = combined(rule, given)
    assert effects.keys() <= set(NAMES)
    is_excluded = [name in effects and effects[name].kind == "excluded" for name in NAMES]
    moved = given.rows * np.where(is_excluded, 1 + 1e-9, 1.0)[:, None]
    assert combined(rule, given._replace(rows=moved))[1] == result
