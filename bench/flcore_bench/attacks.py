"""Attacks of hostile clients: what they send, as a function of what they see. `ATTACKS` names them all.

Attackers know everything: the honest updates of this round and of the first one, and what they would have sent
themselves. An update is a row of a matrix, the difference to the base; mu and sigma are the mean and the standard
deviation of the honest rows, by coordinate. An attack returns a row and a weight for each attacker. It writes into
nothing that it sees. Attackers claim the weights that they would have had, except in `scaling`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

Matrix = npt.NDArray[np.floating]
Labels = npt.NDArray[np.int64]
Sent = tuple[Matrix, Matrix]
"""A row and a weight for each attacker."""


@dataclass(frozen=True)
class Seen:
    """What attackers see in a round.

    Attributes:
        honest: The honest updates, one row each.
        first: The honest updates of the first round.
        own: What the attackers would have sent, one row each.
        weights: The weights that the attackers would have had.
        rng: Their random numbers.
    """

    honest: Matrix
    first: Matrix
    own: Matrix
    weights: Matrix
    rng: np.random.Generator


def honestly(seen: Seen) -> Sent:
    """Send what an honest client sends. Attacks on the data alone do so."""
    return seen.own.copy(), seen.weights.copy()


def sign_flip(seen: Seen, factor: float = 4.0) -> Sent:
    """Send own updates with the opposite sign: -factor * own (Li et al., 2019, arXiv:1811.03761; there 4)."""
    return -factor * seen.own, seen.weights.copy()


def gaussian(seen: Seen, deviation: float = 200.0) -> Sent:
    """Send noise: N(0, deviation^2) in each coordinate (Blanchard et al., 2017, arXiv:1703.02757; there 200)."""
    return seen.rng.normal(0.0, deviation, seen.own.shape), seen.weights.copy()


def constant(seen: Seen, value: float = 100.0) -> Sent:
    """Send the same number in each coordinate: value * (1, ..., 1) (Li et al., 2019, arXiv:1811.03761; there 100)."""
    return np.full(seen.own.shape, value), seen.weights.copy()


def alie(seen: Seen) -> Sent:
    """A little is enough (Baruch et al., 2019, arXiv:1902.06156): mu - z * sigma.

    Of n clients, m attack. They need s = floor(n / 2 + 1) - m honest supporters, so z is the largest number with
    Phi(z) <= (n - m - s) / (n - m), for the normal distribution's Phi.
    """
    hostile, honest = len(seen.own), len(seen.honest)
    supporters = (honest + hostile) // 2 + 1 - hostile
    share = (honest - supporters) / honest
    z = NormalDist().inv_cdf(share) if 0 < share < 1 else 0.0
    return _all_alike(seen, seen.honest.mean(axis=0) - z * seen.honest.std(axis=0))


def inner_product(seen: Seen, epsilon: float = 10.0) -> Sent:
    """Inner product manipulation (Xie et al., 2020, arXiv:1903.03936): -epsilon * mu.

    A large epsilon turns the mean around; it must exceed (n - m) / m for that. A small one hides among honest updates.
    """
    return _all_alike(seen, -epsilon * seen.honest.mean(axis=0))


def inner_product_small(seen: Seen) -> Sent:
    """Inner product manipulation that hides: `inner_product` with epsilon = 0.5."""
    return inner_product(seen, 0.5)


def mimic(seen: Seen) -> Sent:
    """Copy one honest client, so that others count less (Karimireddy et al., 2022, arXiv:2006.09365).

    z is the direction in which honest updates vary most, and the client is the one of the largest |z . update|. Both
    are chosen once, here by the first round, and kept.
    """
    spread = seen.first - seen.first.mean(axis=0)
    direction = np.linalg.svd(spread, full_matrices=False)[2][0]
    return _all_alike(seen, seen.honest[int(np.abs(seen.first @ direction).argmax())])


def scaling(seen: Seen, factor: float = 1000.0, weight: float = 1.0) -> Sent:
    """Train on flipped labels, and send factor * own with a small weight (Bagdasaryan et al., 2020, arXiv:1807.00459).

    The paper's train-and-scale, which replaces the model. A small weight passes every bound on weights.
    """
    return factor * seen.own, np.full(len(seen.own), weight)


def flip_labels(labels: Labels, classes: int = 10) -> Labels:
    """Return the labels on which attackers train: classes - 1 - label (Allouah et al., 2023, arXiv:2302.01772)."""
    return classes - 1 - labels


def _all_alike(seen: Seen, row: Matrix) -> Sent:
    return np.tile(row, (len(seen.own), 1)), seen.weights.copy()


@dataclass(frozen=True)
class Attack:
    """An attack.

    Attributes:
        heading: The heading of its column, at most five characters.
        send: What the attackers send.
        flips_labels: Whether they train on flipped labels.
    """

    heading: str
    send: Callable[[Seen], Sent] = honestly
    flips_labels: bool = False


ATTACKS: Mapping[str, Attack] = {
    "sign_flip": Attack("sign", sign_flip),
    "gaussian": Attack("gauss", gaussian),
    "constant": Attack("const", constant),
    "alie": Attack("alie", alie),
    "inner_product": Attack("ipm", inner_product),
    "inner_product_small": Attack("ipm-s", inner_product_small),
    "label_flip": Attack("label", flips_labels=True),
    "mimic": Attack("mimic", mimic),
    "scaling": Attack("scale", scaling, flips_labels=True),
}
