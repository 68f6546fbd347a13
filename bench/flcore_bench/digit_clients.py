"""Clients that learn the digits side by side: all of their small models are trained in one array, in this process.

A model is a vector: the weights and biases of 64 pixels, 64 hidden units with ReLU, and 10 digits.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from flcore import FlcoreError
from flcore_bench.attacks import Labels, flip_labels
from flcore_bench.internals import digits_file, dirichlet_balanced

HIDDEN, DIGITS, PIXELS = 64, 10, 64
SHAPES = ((PIXELS, HIDDEN), (HIDDEN,), (HIDDEN, DIGITS), (DIGITS,))
CUTS = np.cumsum([int(np.prod(shape)) for shape in SHAPES])
TRAINING_SHARE = 0.75
STEPS, BATCH = 6, 32
"""Steps of gradient descent of a client in a round, and scans of a step."""

Floats = npt.NDArray[np.float32]


class DigitsMissing(FlcoreError):
    """scikit-learn, which has the digits, is not installed."""


@dataclass(frozen=True)
class DigitClients:
    """Scans of all clients, and those of the test.

    Attributes:
        scans: The pixels of all scans for training, one row each.
        labels: Their digits.
        owned: For each client, the rows that are its own. All have the same number, so all have the same weight.
        test: Pixels and digits that no client has.
        hostile: The clients that attack, ascending. The seed draws them.
        seed: The seed of all that is drawn.
    """

    scans: Floats
    labels: Labels
    owned: npt.NDArray[np.int64]
    test: tuple[Floats, Labels]
    hostile: npt.NDArray[np.int64]
    seed: int

    @classmethod
    def draw(cls, clients: int, attackers: int, alpha: float, seed: int) -> "DigitClients":
        """Read the digits, and divide three quarters of them by `flcore.partition.dirichlet_balanced`."""
        try:
            table = np.loadtxt(digits_file(), delimiter=",")
        except ModuleNotFoundError as error:
            raise DigitsMissing(f"expected scikit-learn, {error}: pip install 'flcore[demo]'") from error
        pixels, digits = (table[:, :-1] / 16).astype(np.float32), table[:, -1].astype(np.int64)
        order = np.random.default_rng([seed, 0]).permutation(len(digits))
        cut = int(TRAINING_SHARE * len(digits)) // clients * clients
        train, test = order[:cut], order[cut:]
        parts = dirichlet_balanced(digits[train], clients, alpha, seed=seed)
        hostile = np.random.default_rng([seed, 1]).choice(clients, attackers, replace=False)
        return cls(pixels[train], digits[train], np.array(parts), (pixels[test], digits[test]), np.sort(hostile), seed)

    @property
    def weights(self) -> npt.NDArray[np.float64]:
        """The number of each client's scans."""
        return np.full(len(self.owned), float(self.owned.shape[1]))

    @property
    def poisoned_labels(self) -> Labels:
        """The labels, with those of the attackers flipped."""
        labels = self.labels.copy()
        rows = self.owned[self.hostile]
        labels[rows] = flip_labels(labels[rows])
        return labels

    def first_model(self) -> Floats:
        """Draw the first model (He initialisation)."""
        rng = np.random.default_rng([self.seed, 2])
        weights = [rng.normal(0, np.sqrt(2 / shape[0]), shape) for shape in SHAPES[::2]]
        parts = [weights[0], np.zeros(SHAPES[1]), weights[1], np.zeros(SHAPES[3])]
        return np.concatenate([part.ravel() for part in parts]).astype(np.float32)

    def train(self, model: Floats, labels: Labels, rate: float, rng: np.random.Generator) -> Floats:
        """Return the update of each client after some steps from a model: one row each, the difference to it."""
        clients, size = self.owned.shape
        w1, b1, w2, b2 = (part.copy() for part in _parts(np.repeat(model[None], clients, axis=0)))
        at, each = np.arange(clients)[:, None], np.arange(BATCH)[None]
        for _ in range(STEPS):
            rows = self.owned[at, rng.integers(0, size, (clients, BATCH))]
            pixels = self.scans[rows]
            hidden = np.maximum(pixels @ w1 + b1[:, None], 0)
            scores = hidden @ w2 + b2[:, None]
            error = np.exp(scores - scores.max(axis=2, keepdims=True))
            error /= error.sum(axis=2, keepdims=True)
            error[at, each, labels[rows]] -= 1
            error *= rate / BATCH
            back = (error @ w2.transpose(0, 2, 1)) * (hidden > 0)
            w2 -= hidden.transpose(0, 2, 1) @ error
            b2 -= error.sum(axis=1)
            w1 -= pixels.transpose(0, 2, 1) @ back
            b1 -= back.sum(axis=1)
        trained: Floats = np.concatenate([part.reshape(clients, -1) for part in (w1, b1, w2, b2)], axis=1)
        return trained - model

    def accuracy(self, model: Floats) -> float:
        """Return the share of the test's scans that a model reads right."""
        (w1,), (b1,), (w2,), (b2,) = _parts(model[None])
        pixels, digits = self.test
        scores = np.maximum(pixels @ w1 + b1, 0) @ w2 + b2
        return float((scores.argmax(axis=1) == digits).mean())


def _parts(models: Floats) -> Sequence[Floats]:
    """Return the weights and biases of models, one row each, as views."""
    split = np.split(models, CUTS[:-1], axis=1)
    return [part.reshape(len(models), *shape) for part, shape in zip(split, SHAPES, strict=True)]
