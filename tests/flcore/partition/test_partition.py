"""Partitioners: each index exactly once, a function of the seed, the skew that is asked for, and clear errors."""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flcore.partition import (
    PartitionError,
    dirichlet,
    dirichlet_balanced,
    label_counts,
    quantity_skew,
    shards,
)

Partitioner = Callable[..., list[Any]]

KINDS: dict[str, Partitioner] = {
    "dirichlet": lambda labels, clients, **keys: dirichlet(labels, clients, 0.5, **keys),
    "dirichlet_balanced": lambda labels, clients, **keys: dirichlet_balanced(labels, clients, 0.5, **keys),
    "shards": shards,
    "quantity_skew": lambda labels, clients, **keys: quantity_skew(labels, clients, 0.5, **keys),
}
kinds = pytest.mark.parametrize("kind", KINDS)

LABELS = np.random.default_rng(0).integers(0, 10, 3_000)


@kinds
@settings(max_examples=50, deadline=None)
@given(data=st.data())
def test_each_index_is_in_exactly_one_part(kind: str, data: st.DataObject) -> None:
    examples, clients = data.draw(st.integers(20, 200)), data.draw(st.integers(1, 8))
    labels = data.draw(st.lists(st.integers(-3, 3), min_size=examples, max_size=examples))
    parts = KINDS[kind](labels, clients, seed=data.draw(st.integers(0, 2**40)))
    assert len(parts) == clients and all(part.dtype == np.int64 and part.size for part in parts)
    assert sorted(np.concatenate(parts).tolist()) == list(range(examples))
    assert all((np.diff(part) > 0).all() for part in parts)


@kinds
def test_it_is_a_function_of_the_seed(kind: str) -> None:
    first, again, other = (KINDS[kind](LABELS, 8, seed=seed) for seed in (3, 3, 4))
    assert [part.tolist() for part in first] == [part.tolist() for part in again]
    assert [part.tolist() for part in first] != [part.tolist() for part in other]


@kinds
@pytest.mark.parametrize(
    "labels",
    [
        [f"class-{label}" for label in LABELS],
        LABELS.astype(np.uint8),
        LABELS * 1_000_003 - 5,
        LABELS / 10,
        LABELS.data,
    ],
    ids=["strings", "bytes", "sparse", "floats", "buffer"],
)
def test_only_the_order_of_the_labels_matters(kind: str, labels: Any) -> None:
    expected = KINDS[kind](LABELS, 5, seed=1)
    found = KINDS[kind](labels, 5, seed=1)
    assert [part.tolist() for part in found] == [part.tolist() for part in expected]


@kinds
def test_each_client_has_its_minimum(kind: str) -> None:
    for seed in range(20):
        assert min(map(len, KINDS[kind](LABELS[:400], 8, seed=seed, min_size=20))) >= 20


def entropies(parts: list[Any]) -> float:
    """The clients' mean entropy of labels, in units of that of equal shares."""
    _, counts = label_counts(LABELS, parts)
    shares = counts / counts.sum(axis=1, keepdims=True)
    logs = np.log(shares, out=np.zeros_like(shares), where=shares > 0)
    return float(-(shares * logs).sum(axis=1).mean() / np.log(10))


@pytest.mark.parametrize("partitioner", [dirichlet, dirichlet_balanced])
def test_a_smaller_alpha_gives_more_label_skew(partitioner: Partitioner) -> None:
    found = [
        np.mean([entropies(partitioner(LABELS, 10, alpha, seed=seed)) for seed in range(5)])
        for alpha in (0.1, 1.0, 10.0, 1000.0)
    ]
    assert all(one + 0.015 < other for one, other in pairwise(found))
    assert found[0] < 0.6 and found[-1] > 0.97


def test_portions_are_those_of_the_distribution() -> None:
    """The variance of a client's share of a label is that of Dir(alpha): (1/n)(1 - 1/n) / (n alpha + 1)."""
    clients, alpha, labels = 5, 0.4, np.repeat(np.arange(40), 500)
    shares = np.concatenate(
        [label_counts(labels, dirichlet(labels, clients, alpha, seed=seed))[1].ravel() / 500 for seed in range(40)]
    )
    expected = (1 / clients) * (1 - 1 / clients) / (clients * alpha + 1)
    assert shares.mean() == pytest.approx(1 / clients) and shares.var() == pytest.approx(expected, rel=0.05)


def test_the_balanced_one_gives_equal_sizes_even_where_labels_run_out() -> None:
    sizes = [len(part) for part in dirichlet_balanced(LABELS, 7, 0.01, seed=1)]
    assert sizes == [429] * 4 + [428] * 3


def test_shards_give_each_client_a_few_labels_and_equal_sizes() -> None:
    labels = np.repeat(np.arange(10), 60)
    parts = shards(labels, 10, 2, seed=5)
    _, counts = label_counts(labels, parts)
    assert {len(part) for part in parts} == {60} and (counts > 0).sum(axis=1).max() == 2
    assert [len(part) for part in shards(labels[:25], 4, 3, seed=5)] == [
        len(part) for part in shards([0] * 25, 4, 3, seed=5)
    ]


@kinds
def test_examples_of_one_label_are_dealt_at_random(kind: str) -> None:
    """Neighbours in the data set need not stay together: a client's examples come from all of it."""
    parts = KINDS[kind](np.zeros(1000, int), 2, seed=0, min_size=100)
    assert all(abs(part.mean() - 499.5) < 60 and np.diff(part).max() < 200 for part in parts)


def test_the_balanced_distributions_are_around_the_labels_shares() -> None:
    labels = np.repeat([0, 1], [900, 100])
    _, counts = label_counts(labels, dirichlet_balanced(labels, 4, 1e5))
    assert np.abs(counts[:, 1] - 25).max() < 15


def test_quantity_skew_gives_skewed_sizes_and_like_labels() -> None:
    parts = quantity_skew(LABELS, 5, 0.3, seed=7, min_size=100)
    sizes = sorted(map(len, parts))
    assert sizes[0] >= 100 and sizes[-1] > 5 * sizes[0]
    _, counts = label_counts(LABELS, parts)
    assert np.abs(counts / counts.sum(axis=1, keepdims=True) - 0.1).max() < 0.08
    even = [len(part) for part in quantity_skew(LABELS, 5, 1e6, seed=7)]
    assert max(even) - min(even) < 20
    assert [len(part) for part in quantity_skew([0] * 12, 3, 0.1, min_size=4)] == [4, 4, 4]


@kinds
@pytest.mark.parametrize(
    ("labels", "keys", "message"),
    [
        ([], {}, "expected at least one example, got none"),
        (np.zeros((3, 2)), {}, r"one label per example, got an array of shape \(3, 2\)"),
        ([1.0, float("nan"), 2.0], {}, "got NaN for 1 of 3"),
        (np.array([1, "a", None], object), {}, "labels of one kind|one label per example"),
        (5, {}, "expected a list or an array with one label per example"),
        (["a"] * 7, {}, "7 examples are too few for 8 clients with at least 1 each: expected 8"),
        (["a"] * 70, {"min_size": 9}, "70 examples are too few for 8 clients with at least 9 each: expected 72"),
        (["a"] * 70, {"min_size": -1}, "min_size: expected a number >= 0, got -1"),
    ],
)
def test_what_cannot_be_divided_is_refused(kind: str, labels: Any, keys: dict[str, int], message: str) -> None:
    with pytest.raises(PartitionError, match=message):
        KINDS[kind](labels, 8, **keys)


@kinds
def test_no_clients_are_refused(kind: str) -> None:
    with pytest.raises(PartitionError, match="clients: expected a number >= 1, got 0"):
        KINDS[kind]([1, 2], 0)


@pytest.mark.parametrize("partitioner", [dirichlet, dirichlet_balanced, quantity_skew])
@pytest.mark.parametrize("alpha", [0.0, -1.0, float("nan"), float("inf")])
def test_a_concentration_that_is_none_is_refused(partitioner: Partitioner, alpha: float) -> None:
    with pytest.raises(PartitionError, match="alpha: expected a finite number > 0"):
        partitioner(LABELS, 8, alpha)


def test_a_minimum_that_no_draw_reaches_is_refused_with_what_was_reached() -> None:
    with pytest.raises(
        PartitionError, match=r"at least 35 examples for each of 8 clients; in 500 draws with alpha = 0.01"
    ):
        dirichlet(LABELS[:300], 8, 0.01, min_size=35)


def test_shards_that_are_too_many_are_refused() -> None:
    with pytest.raises(PartitionError, match="per_client: expected a number >= 1"):
        shards(LABELS, 8, 0)
    with pytest.raises(
        PartitionError, match=r"per_client: expected at most 3, as 30 examples for 8 clients .*, got 5; take"
    ):
        shards(LABELS[:30], 8, 5)
    with pytest.raises(PartitionError, match="30 examples in 8 shards of 3 or more give a client at least 6: expected"):
        shards(LABELS[:30], 4, 2, min_size=7)


def test_the_counts_name_every_label() -> None:
    values, counts = label_counts(["b", "a", "b"], [np.array([0, 2]), np.array([], np.int64), np.array([1])])
    assert values.tolist() == ["a", "b"] and counts.tolist() == [[0, 2], [0, 0], [1, 0]]
