"""Every rule and stage against the papers' equations in plain NumPy (`tests.reference_rules`); ties."""

from collections.abc import Callable, Mapping
from itertools import permutations
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pytest
import xxhash

from flcore import Aggregator, Model, ModelSpec, aggregate
from tests import reference_rules as oracle
from tests.reference_rules import Points, Reals

Arrays = dict[str, npt.NDArray[Any]]

SHAPES = {"w": (3, 4), "b": (7,), "n": (5,)}
"""Two tensors of floats, and one of integers, which distances do not count."""
MEASURED = np.array([True] * 19 + [False] * 5)
MOST = 12


class Case(NamedTuple):
    """A rule with `{f}` in its name, its oracle, and the smallest number of updates per f and beside it."""

    rule: str
    oracle: Callable[[Points, int], Reals]
    per_f: int = 2
    beside: int = 1
    needs_base: bool = False


CASES = [
    Case("mean", lambda p, f: oracle.mean(p)),
    Case("unweighted_mean", lambda p, f: oracle.mean(p.plain)),
    Case("median", lambda p, f: oracle.median(p)),
    Case("median(weighted=false)", lambda p, f: oracle.median(p.plain)),
    Case("trimmed_mean(f={f})", oracle.trimmed_mean),
    Case("trimmed_mean(f={f}, weighted=false)", lambda p, f: oracle.trimmed_mean(p.plain, f)),
    Case("meamed(f={f})", oracle.meamed),
    Case("krum(f={f})", oracle.krum, beside=3),
    Case('krum(f={f}, neighbours="byzfl")', lambda p, f: oracle.krum(p, f, 1), beside=3),
    Case("multi_krum(f={f})", oracle.multi_krum, beside=3),
    Case("multi_krum(f={f}, m=2, weighted=false)", lambda p, f: oracle.multi_krum(p.plain, f, 2), beside=3),
    Case("bulyan(f={f})", oracle.bulyan, per_f=4, beside=3),
    Case("mda(f={f})", oracle.mda),
    Case("mda(f={f}, weighted=false)", lambda p, f: oracle.mda(p.plain, f)),
    Case("geometric_median(smoothing=1e-9)", lambda p, f: oracle.geometric_median(p)),
    Case("geometric_median(weighted=false)", lambda p, f: oracle.geometric_median(p.plain)),
    Case("clipped_mean(max_norm=3.0)", lambda p, f: oracle.mean(oracle.clipped_to(p, 3.0)), needs_base=True),
    Case(
        "clipped_mean(quantile=0.5, weighted=false)",
        lambda p, f: oracle.mean(oracle.clip_quantile(p, 0.5).plain),
        needs_base=True,
    ),
    Case("centered_clip(radius=3.0)", lambda p, f: oracle.centered_clip(p, 3.0), needs_base=True),
    Case(
        "centered_clip(radius=2.0, iterations=5, weighted=false)",
        lambda p, f: oracle.centered_clip(p.plain, 2.0, 5),
        needs_base=True,
    ),
    Case("nnm(f={f}) + mean", lambda p, f: oracle.mean(oracle.nnm(p, f)), per_f=1),
    Case("nnm(f={f}) + trimmed_mean(f={f})", lambda p, f: oracle.trimmed_mean(oracle.nnm(p, f), f)),
    Case("nnm(f={f}) + krum(f={f})", lambda p, f: oracle.krum(oracle.nnm(p, f), f), beside=3),
    Case(
        "nnm(f={f}, weighted=false) + geometric_median",
        lambda p, f: oracle.geometric_median(oracle.unweighted(lambda q: oracle.nnm(q, f))(p)),
        per_f=1,
    ),
    Case("bucketing(size=2) + median", lambda p, f: oracle.median(oracle.bucketing(p, 2))),
    Case("bucketing(size=3) + nnm(f=1) + mean", lambda p, f: oracle.mean(oracle.nnm(oracle.bucketing(p, 3), 1)), 3),
    Case("clip_norm(max_norm=3.0) + median", lambda p, f: oracle.median(oracle.clipped_to(p, 3.0)), needs_base=True),
    Case(
        "clip_norm(quantile=0.5) + multi_krum(f={f})",
        lambda p, f: oracle.multi_krum(oracle.clip_quantile(p, 0.5), f),
        beside=3,
        needs_base=True,
    ),
    Case(
        "arc(f={f}) + nnm(f={f}) + trimmed_mean(f={f})",
        lambda p, f: oracle.trimmed_mean(oracle.nnm(oracle.arc(p, f), f), f),
        needs_base=True,
    ),
]


def drawn(count: int, f: int, kind: str, seed: int) -> Points:
    """Return points of a kind, with weights that are whole numbers, so that their sums are exact."""
    rng = np.random.default_rng(seed)
    rows = rng.standard_normal((count, MEASURED.size))
    if kind == "far":  # f of them far away
        rows[rng.permutation(count)[:f]] *= 300
    elif kind == "near":  # all close to each other, and far from the base
        rows = 20 * rng.standard_normal(MEASURED.size) + 1e-3 * rows
    elif kind == "heavy":
        rows = rng.standard_cauchy((count, MEASURED.size))
    rows[:, ~MEASURED] = np.rint(10 * rows[:, ~MEASURED])
    return Points(rows, rng.integers(1, 9, count).astype(np.float64), MEASURED)


def arrays_of(row: Reals) -> Arrays:
    """Return a point as a model."""
    ends = np.cumsum([np.prod(shape) for shape in SHAPES.values()])[:-1]
    parts = dict(zip(SHAPES, np.split(row, ends), strict=True))
    return {
        name: values.reshape(SHAPES[name]).astype(np.int64 if name == "n" else np.float64)
        for name, values in parts.items()
    }


def row_of(arrays: Mapping[str, Any]) -> Reals:
    return np.concatenate([np.asarray(arrays[name], np.float64).reshape(-1) for name in SHAPES])


def by_name(points: Points, rule: str, base: Reals | None, *, are_deltas: bool) -> Reals:
    """Return what an aggregator makes of points, which come in another order than that of their names."""
    model = None if base is None else Model.of(arrays_of(base))
    given: dict[str, Any] = {"base": model} if are_deltas else {"reference": model}
    aggregator = Aggregator(ModelSpec.of(arrays_of(points.rows[0])), rule=rule, seed=points.seed, **given)
    for k in range(points.n)[::-1]:
        with aggregator.update(client=f"{k:02}", weight=points.weights[k]) as update:
            update.write_all(arrays_of(points.rows[k] if are_deltas or base is None else points.rows[k] + base))
    return row_of(aggregator.finish().arrays())


def in_the_order_of_digests(points: Points) -> Points:
    """Return points as `aggregate` orders them, if it has to: by the digests of their elements."""
    digests = [
        xxhash.xxh3_128(b"".join(values.tobytes() for values in arrays_of(row).values())).hexdigest()
        for row in points.rows
    ]
    order = sorted(range(points.n), key=digests.__getitem__)
    return points._replace(rows=points.rows[order], weights=points.weights[order], seed=0)


def assert_near(found: Reals, wanted: Reals, points: Points, rule: str) -> None:
    scale = np.abs(points.rows).max()
    error = np.abs(found - wanted)
    tolerance = 1e-6 if "geometric" in rule else 1e-9
    assert error[MEASURED].max() <= tolerance * scale, rule
    assert error[~MEASURED].max() <= 0.5 + tolerance * scale, rule


@pytest.mark.parametrize("kind", ["even", "far", "near", "heavy"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.rule)
def test_a_rule_is_its_papers_equation(case: Case, kind: str) -> None:
    for f in (1, 2) if "{f}" in case.rule else (1,):
        rule, least = case.rule.format(f=f), case.per_f * f + case.beside
        for count in {1: (least, least + 1, MOST), 2: (least, max(least, 9))}[f]:
            points = drawn(count, f, kind, 100 * count + f)._replace(seed=count)
            base = np.rint(8 * drawn(1, 1, "even", count).rows[0])
            wanted, are_deltas = case.oracle(points, f), bool(count % 2)
            assert_near(by_name(points, rule, base, are_deltas=are_deltas) - base, wanted, points, rule)
            if not case.needs_base:
                assert_near(by_name(points, rule, None, are_deltas=False), wanted, points, rule)
            unnamed = in_the_order_of_digests(points)
            updates = [(arrays_of(row), weight) for row, weight in zip(*points[:2], strict=True)]
            found = aggregate(updates, rule=rule, base=arrays_of(base))
            assert_near(row_of(found) - base, case.oracle(unnamed, f), points, rule)


TIES = {
    "krum(f=1)": [-1.5, -0.5, 0.5, 1.5, 9.0],
    "multi_krum(f=1, m=1)": [-1.5, -0.5, 0.5, 1.5, 9.0],
    "multi_krum(f=1, m=3)": [-1.5, -0.5, 0.5, 1.5, 9.0],
    "bulyan(f=1)": [-3.0, -2.0, -1.0, 0.0, 1.0, 2.0, 3.0],
    "mda(f=1)": [-1.0, 0.0, 1.0],
    "nnm(f=1) + mean": [-1.0, 0.0, 1.0],
    "nnm(f=1) + krum(f=1)": [-2.0, -1.0, 0.0, 1.0, 2.0],
}
"""Values of which some are alike for the rule: each decides by names."""


def oracle_of(rule: str) -> Callable[[Points, int], Reals]:
    if "m=" in rule:
        return lambda points, f: oracle.multi_krum(points, f, int(rule[-2]))
    return next(case.oracle for case in CASES if case.rule.format(f=1) == rule)


def some_orders(items: list[Any]) -> list[list[Any]]:
    """Return all orders of a few items, or 24 of many."""
    rng = np.random.default_rng(len(items))
    few = len(items) <= 4
    return (
        [list(order) for order in permutations(items)]
        if few
        else [[items[k] for k in rng.permutation(len(items))] for _ in range(24)]
    )


def tied(values: list[float], weights: list[float] | None = None) -> Points:
    rows = np.zeros((len(values), MEASURED.size))
    rows[:, 3] = values
    return Points(rows, np.array(weights or [1.0] * len(values)), MEASURED)


@pytest.mark.parametrize("rule", TIES)
def test_a_tie_goes_to_the_smaller_name(rule: str) -> None:
    found = set()
    for order in some_orders(TIES[rule]):
        points = tied(order)
        result = by_name(points, rule, None, are_deltas=False)
        assert_near(result, oracle_of(rule)(points, 1), points, rule)
        found.add(round(float(result[3]), 6))
    assert len(found) > 1  # names decide


@pytest.mark.parametrize("rule", TIES)
def test_a_tie_of_unnamed_updates_goes_to_the_smaller_digest_in_any_order(rule: str) -> None:
    points = in_the_order_of_digests(tied(TIES[rule]))
    results = {
        row_of(aggregate([(arrays_of(row), 1.0) for row in order], rule=rule)).tobytes()
        for order in some_orders(list(points.rows))
    }
    assert len(results) == 1
    assert_near(np.frombuffer(results.pop()), oracle_of(rule)(points, 1), points, rule)


@pytest.mark.parametrize("rule", ["nnm(f=3) + mean", "bucketing(size=2) + unweighted_mean"])
def test_equal_updates_of_other_weights_are_in_the_order_of_their_weights(rule: str) -> None:
    points = tied([0.0, 1.0, 1.0, 1.0, 5.0, 7.0], [1.0, 1.0, 3.0, 7.0, 2.0, 2.0])
    updates = [(arrays_of(row), weight) for row, weight in zip(*points[:2], strict=True)]
    results = {row_of(aggregate(order, rule=rule)).tobytes() for order in some_orders(updates)}
    assert len(results) == 1
    halved = {row_of(aggregate([(arrays, weight / 8) for arrays, weight in updates], rule=rule)).tobytes()}
    assert halved == results
