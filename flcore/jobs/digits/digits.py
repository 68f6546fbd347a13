"""A digit classifier on scikit-learn's handwritten digits (1,797 scans of 8 x 8 pixels), split unevenly over clients.

The split is non-IID: the share of each digit that each client holds is drawn from a Dirichlet distribution with
alpha = 0.3, so that one hospital sees many zeros and hardly a seven. A quarter of each client's scans is held out; all
held-out scans together are the test set. The model is a small multi-layer perceptron in NumPy.
"""

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import numpy.typing as npt

import flcore

ALPHA = 0.3
HELD_OUT = 0.25
HIDDEN = 256
FEWEST = 8  # scans that every client has at least; the split is drawn again until they do
MAX_DRAWS = 200

Scans = tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]


def initial_model(seed: int) -> dict[str, npt.NDArray[np.float32]]:
    """Draw the first model: 64 pixels, a hidden layer with ReLU, 10 digits (He initialisation)."""
    rng = np.random.default_rng(seed)
    return {
        "hidden.weight": rng.normal(0, np.sqrt(2 / 64), (64, HIDDEN)).astype(np.float32),
        "hidden.bias": np.zeros(HIDDEN, np.float32),
        "output.weight": rng.normal(0, np.sqrt(2 / HIDDEN), (HIDDEN, 10)).astype(np.float32),
        "output.bias": np.zeros(10, np.float32),
    }


class Hospital:
    """A client: it trains on its own scans and validates on those that it has held out."""

    def __init__(self, site: flcore.Site) -> None:
        self.train_scans, self.test_scans = split(site.clients, site.seed)[site.index]

    def train(self, model: flcore.Arrays, task: flcore.Task) -> flcore.Update:
        """Train the global model for some epochs."""
        arrays, loss = fit(model, self.train_scans, seed=task.seed, **task.hyperparameters)
        return flcore.Update(arrays, weight=len(self.train_scans[1]), metrics={"loss": loss})

    def validate(self, model: flcore.Arrays, _: flcore.Task) -> flcore.Update:
        """Measure the global model on the scans held out here."""
        metrics = {"accuracy": accuracy(model, self.test_scans)}
        return flcore.Update(weight=len(self.test_scans[1]), metrics=metrics)


def digits_file() -> Path:
    """Return the file of scikit-learn's digits: importing scikit-learn for it would take each client a second."""
    found = find_spec("sklearn")
    if found is None or not found.submodule_search_locations:
        raise ModuleNotFoundError("the digits need scikit-learn, of flcore's extra demo", name="sklearn")
    return Path(found.submodule_search_locations[0]) / "datasets/data/digits.csv.gz"


def split(clients: tuple[str, ...], seed: int) -> list[tuple[Scans, Scans]]:
    """Return each client's scans, as (training, held out). The same for all who hold the contract."""
    table = np.loadtxt(digits_file(), delimiter=",")
    pixels, digits = (table[:, :-1] / 16).astype(np.float32), table[:, -1].astype(np.int64)
    rng = np.random.default_rng(seed)
    for _ in range(MAX_DRAWS):
        shares = draw_shares(digits, len(clients), rng)
        if min(map(len, shares)) >= FEWEST:
            break
    else:
        raise ValueError(f"{len(digits)} scans are too few for {len(clients)} clients with at least {FEWEST} each")
    halves = [(share[(cut := max(2, int(HELD_OUT * len(share)))) :], share[:cut]) for share in shares]
    return [((pixels[own], digits[own]), (pixels[held], digits[held])) for own, held in halves]


def draw_shares(digits: npt.NDArray[np.int64], clients: int, rng: np.random.Generator) -> list[npt.NDArray[np.int64]]:
    """Draw whose each scan is: of each digit, the clients' portions are drawn from a Dirichlet distribution."""
    owned: list[list[int]] = [[] for _ in range(clients)]
    for digit in range(10):
        scans = rng.permutation(np.flatnonzero(digits == digit))
        cuts = (rng.dirichlet([ALPHA] * clients).cumsum()[:-1] * len(scans)).astype(int)
        for owner, portion in enumerate(np.split(scans, cuts)):
            owned[owner].extend(portion.tolist())
    return [rng.permutation(np.array(scans, np.int64)) for scans in owned]


def fit(
    model: flcore.Arrays, scans: Scans, *, seed: int, epochs: int, batch_size: int, learning_rate: float
) -> tuple[dict[str, npt.NDArray[np.float32]], float]:
    """Train a copy of a model by stochastic gradient descent on the cross-entropy; return it and its last loss."""
    w1, b1, w2, b2 = (model[name].copy() for name in initial_model(0))
    pixels, digits = scans
    rng = np.random.default_rng(seed)
    losses: list[float] = []
    for _ in range(epochs):
        losses = []
        for batch in np.array_split(rng.permutation(len(digits)), max(1, len(digits) // batch_size)):
            hidden = np.maximum(pixels[batch] @ w1 + b1, 0)
            error = softmax(hidden @ w2 + b2)
            chosen = error[np.arange(len(batch)), digits[batch]]
            losses.append(float(-np.log(np.maximum(chosen, 1e-12)).mean()))
            error[np.arange(len(batch)), digits[batch]] -= 1
            error *= learning_rate / len(batch)
            back = (error @ w2.T) * (hidden > 0)
            w2 -= hidden.T @ error
            b2 -= error.sum(axis=0)
            w1 -= pixels[batch].T @ back
            b1 -= back.sum(axis=0)
    return dict(zip(initial_model(0), (w1, b1, w2, b2), strict=True)), float(np.mean(losses))


def accuracy(model: flcore.Arrays, scans: Scans) -> float:
    """Return the share of scans that a model reads right."""
    pixels, digits = scans
    hidden = np.maximum(pixels @ model["hidden.weight"] + model["hidden.bias"], 0)
    scores = hidden @ model["output.weight"] + model["output.bias"]
    return float((scores.argmax(axis=1) == digits).mean())


def softmax(scores: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Return the probabilities of each row."""
    powers: npt.NDArray[np.float32] = np.exp(scores - scores.max(axis=1, keepdims=True))
    powers /= powers.sum(axis=1, keepdims=True)
    return powers


def baselines(job: flcore.Job) -> flcore.Baselines:
    """Train without a federation, for as many epochs in all: each client alone, then all scans in one place."""
    contract = job.contract
    parts = split(contract.client_names, contract.seed)
    test = together([held for _, held in parts])
    settings = contract.hyperparameters("train", 1)
    settings["epochs"] *= contract.server.rounds

    def score(scans: Scans) -> float:
        model, _ = fit(initial_model(contract.seed), scans, seed=contract.seed, **settings)
        return accuracy(model, test)

    alone = {name: score(own) for name, (own, _) in zip(contract.client_names, parts, strict=True)}
    return flcore.Baselines(alone, score(together([own for own, _ in parts])))


def together(parts: list[Scans]) -> Scans:
    """Put scans in one place."""
    return np.concatenate([pixels for pixels, _ in parts]), np.concatenate([digits for _, digits in parts])
