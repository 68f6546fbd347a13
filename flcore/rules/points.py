"""Updates as points: what the stages of a chain see, and what they return.

A stage sees squared distances, weights and names, and no element of a model. It returns rows of shares: row m stands
for the point base + Σₙ sharesₘₙ · (updateₙ - base). All of it is NumPy over a few clients. Sums are `math.fsum`, or in
the order of the clients' names, so that the order in which updates came does not matter.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from flcore.rules.effect import RuleEffect

Matrix = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Points:
    """The updates of a round, or what earlier stages made of them.

    Attributes:
        names: The clients' names. A row that several clients share has a name of its own.
        weights: One weight per point.
        squared: Squared distances of N points and the base, the last one: (N + 1) × (N + 1). NaN where not measured.
        tie_keys: Returns a text per point. Of two points that are otherwise alike, the one with the smaller text comes
            first. Called when it is needed, because texts of unnamed updates are digests of all of their bytes.
        seed: A number of the run and the round, for random choices.
    """

    names: Sequence[str]
    weights: Sequence[float]
    squared: Matrix
    tie_keys: Callable[[], Sequence[str]]
    seed: int = 0

    @property
    def count(self) -> int:
        """The number of points, without the base."""
        return len(self.weights)

    @property
    def norms(self) -> list[float]:
        """The distance of each point to the base."""
        return [math.sqrt(value) for value in self.squared[-1, :-1]]

    @property
    def between(self) -> Matrix:
        """The squared distances between the points, N × N."""
        return self.squared[:-1, :-1]

    def ordered(self, figures: Sequence[float], chosen: Sequence[int] | None = None) -> list[int]:
        """Return points in the order of their figures, and where these are equal, of their tie keys.

        `chosen`: the points to order. Default: None, all.
        """
        indices = range(self.count) if chosen is None else chosen
        ties = self.tie_keys() if len({figures[k] for k in indices}) < len(indices) else [""] * self.count
        return sorted(indices, key=lambda k: (figures[k], ties[k]))

    def mixed(self, mixture: "Mixture") -> "Points":
        """Return the points that a mixture makes of these.

        With rows a and b whose shares, those of the base included, add up to 1:
        ‖a - b‖² = -½ Σᵢⱼ (aᵢ - bᵢ)(aⱼ - bⱼ) · squaredᵢⱼ.
        """
        shares = np.vstack([np.column_stack([mixture.shares, mixture.rests]), np.eye(1, self.count + 1, self.count)])
        order = sorted(range(self.count), key=self.tie_keys().__getitem__) if self.count > 1 else [0]
        places = [*order, self.count]
        known = np.nan_to_num(self.squared)[np.ix_(places, places)]
        ordered = np.ascontiguousarray(shares[:, places])
        # `einsum` without BLAS, whose sums depend on its threads.
        products = np.einsum("mi,ij->mj", ordered, known)
        cross = np.einsum("mj,nj->mn", products, ordered)
        cross = (cross + cross.T) / 2  # a distance is the same both ways to the bit, or a tie would be none
        own = np.diag(cross)
        squared = np.maximum(cross - (own[:, None] + own[None]) / 2, 0.0)
        for k, row in enumerate(ordered):
            squared[k, (ordered == row).all(axis=1)] = 0.0  # and not what rounding has left
        if np.isnan(self.squared[-1, :-1]).all():
            squared[-1, :-1] = squared[:-1, -1] = np.nan  # there is no base
        names, keys = mixture.names or self.names, self.tie_keys
        return Points(names, mixture.weights, squared, (lambda: names) if mixture.names else keys, self.seed)


@dataclass(frozen=True)
class Mixture:
    """What a stage makes of N points: M points.

    Attributes:
        shares: M × N numbers >= 0; the sum of a row is at most 1, and the base has the rest.
        weights: One weight per row.
        effects: What was done to a point, by its index.
        names: Names of the rows, if they are not those of the points.
    """

    shares: Matrix
    weights: Sequence[float]
    effects: Mapping[int, RuleEffect] = field(default_factory=dict)
    names: Sequence[str] = ()

    @property
    def rests(self) -> Matrix:
        """The base's share of each row: what the others leave of 1. Rounding leaves none."""
        left = np.array([1 - math.fsum(row) for row in self.shares])
        return np.where(np.abs(left) <= ROUNDING, 0.0, left)

    def after(self, earlier: Matrix) -> Matrix:
        """Return the shares of the first points, if `earlier` made these points of them."""
        return np.array([[math.fsum(row * column) for column in earlier.T] for row in self.shares])


ROUNDING = 1e-12
"""What the shares of a row may lack of 1, and still be all of it."""
