"""Attacks: each is what its paper says, does not write into what it sees, and draws the same twice."""

from statistics import NormalDist

import numpy as np
import pytest
from flcore_bench.attacks import (
    ATTACKS,
    Seen,
    alie,
    constant,
    flip_labels,
    gaussian,
    honestly,
    inner_product,
    mimic,
    scaling,
    sign_flip,
)


def seen(honest: int = 12, hostile: int = 3, size: int = 40, seed: int = 0) -> Seen:
    rng = np.random.default_rng(seed)
    rows, first, own = (rng.normal(1, 2, (count, size)).astype(np.float32) for count in (honest, honest, hostile))
    return Seen(rows, first, own, np.array([10.0, 20.0, 30.0])[:hostile], np.random.default_rng(7))


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_is_a_pure_function_of_what_it_sees(name: str) -> None:
    given, untouched = seen(), seen()
    sent, weights = ATTACKS[name].send(given)
    again, _ = ATTACKS[name].send(untouched)
    assert sent.shape == given.own.shape and weights.shape == (3,)
    np.testing.assert_array_equal(sent, again)
    for field in ("honest", "first", "own", "weights"):
        np.testing.assert_array_equal(getattr(given, field), getattr(seen(), field))
        assert not np.shares_memory(sent, getattr(given, field))
        assert not np.shares_memory(weights, getattr(given, field))


@pytest.mark.parametrize("name", sorted(set(ATTACKS) - {"scaling"}))
def test_attackers_claim_the_weights_that_they_have(name: str) -> None:
    assert ATTACKS[name].send(seen())[1].tolist() == [10.0, 20.0, 30.0]


def test_sign_flip_scaling_and_honest_ones_send_multiples_of_their_own() -> None:
    own = seen().own
    np.testing.assert_allclose(sign_flip(seen())[0], [[-4 * value for value in row] for row in own.tolist()])
    np.testing.assert_allclose(scaling(seen())[0], [[1000 * value for value in row] for row in own.tolist()])
    assert scaling(seen())[1].tolist() == [1.0, 1.0, 1.0]
    np.testing.assert_array_equal(honestly(seen())[0], own)


def test_constant_and_gaussian_do_not_depend_on_updates() -> None:
    assert set(constant(seen())[0].ravel().tolist()) == {100.0}
    drawn, _ = gaussian(seen(size=20_000))
    assert abs(drawn.mean()) < 5 and drawn.std() == pytest.approx(200, rel=0.02)  # 5 is six standard errors
    assert not np.array_equal(drawn[0], drawn[1])


@pytest.mark.parametrize(("honest", "hostile", "supporters"), [(12, 3, 5), (8, 2, 4), (39, 11, 15)])
def test_alie_has_the_factor_of_the_paper(honest: int, hostile: int, supporters: int) -> None:
    given = seen(honest, min(hostile, 3))
    if hostile > 3:
        given = Seen(given.honest, given.first, np.zeros((hostile, 40)), np.ones(hostile), given.rng)
    sent, _ = alie(given)
    z = (given.honest.mean(axis=0) - sent[0]) / given.honest.std(axis=0)
    assert z.max() - z.min() < 1e-4 and (sent == sent[0]).all()
    # Phi(z) is the share of honest clients that are not needed as supporters.
    assert NormalDist().cdf(float(z[0])) == pytest.approx((honest - supporters) / honest, abs=1e-5)


def test_inner_products_turn_the_mean_around_if_epsilon_is_large_enough() -> None:
    for epsilon, turns in ((0.5, False), (3.9, False), (4.1, True), (10.0, True)):  # (n - m) / m is 4
        given = seen()
        sent, _ = inner_product(given, epsilon)
        mean = np.concatenate([given.honest, sent]).mean(axis=0)
        assert (mean @ given.honest.mean(axis=0) < 0) == turns
    np.testing.assert_allclose(
        ATTACKS["inner_product_small"].send(seen())[0][1], -seen().honest.mean(axis=0) / 2, rtol=1e-6
    )


def test_mimic_copies_the_client_that_is_farthest_in_the_direction_of_most_variance() -> None:
    given = seen()
    first = np.full((12, 40), 0.01, np.float32)
    first[:, 5] = [-3, -2, -1, 0, 1, 2, 3, -3, 3, 9, 0, 0]  # coordinate 5 alone varies, and client 9 leads
    sent, _ = mimic(Seen(given.honest, first, given.own, given.weights, given.rng))
    for row in sent:
        np.testing.assert_array_equal(row, given.honest[9])


def test_labels_are_flipped() -> None:
    labels = np.arange(10)
    assert flip_labels(labels).tolist() == [9, 8, 7, 6, 5, 4, 3, 2, 1, 0]
    assert flip_labels(flip_labels(labels)).tolist() == labels.tolist() == list(range(10))
    assert {name for name, attack in ATTACKS.items() if attack.flips_labels} == {"label_flip", "scaling"}
