"""Softmax regression in NumPy: each client trains on its own examples, and only the model travels."""

import numpy as np
import numpy.typing as npt

import flcore

FEATURES, CLASSES, HELD_OUT = 8, 3, 100
Examples = tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]


def load(site: flcore.Site) -> Examples:
    """Return the examples of a site: a row of features each, and their classes."""
    # YOUR OWN CODE GOES HERE: read the data of this site. These are synthetic: three clouds of points, whose centres
    # all sites share; each site has seen the classes in other proportions.
    centres = np.random.default_rng(site.seed).normal(0, 1, (CLASSES, FEATURES))
    rng = np.random.default_rng([site.seed, site.index])
    classes = rng.choice(CLASSES, size=400, p=rng.dirichlet([1.0] * CLASSES))
    features = centres[classes] + rng.normal(0, 1, (len(classes), FEATURES))
    return features.astype(np.float32), classes


def initial_model(_: int) -> dict[str, npt.NDArray[np.float32]]:
    """Return the first global model: zeros, so it holds all classes to be equally likely."""
    return {"weight": np.zeros((FEATURES, CLASSES), np.float32), "bias": np.zeros(CLASSES, np.float32)}


class Client:
    """One site: it holds out some of its examples, and trains on the others."""

    def __init__(self, site: flcore.Site) -> None:
        features, classes = load(site)
        self.train_set = features[HELD_OUT:], classes[HELD_OUT:]
        self.held_out = features[:HELD_OUT], classes[:HELD_OUT]

    def train(self, model: flcore.Arrays, task: flcore.Task) -> flcore.Update:
        """Train the global model by stochastic gradient descent."""
        weight, bias = model["weight"].copy(), model["bias"].copy()
        features, classes = self.train_set
        settings, rng = task.hyperparameters, np.random.default_rng(task.seed)
        for _ in range(settings["epochs"]):
            for batch in np.array_split(rng.permutation(len(classes)), len(classes) // settings["batch_size"]):
                error = probabilities(features[batch], weight, bias) - np.eye(CLASSES, dtype=np.float32)[classes[batch]]
                weight -= settings["learning_rate"] / len(batch) * features[batch].T @ error
                bias -= settings["learning_rate"] * error.mean(axis=0)
        loss, _ = measure({"weight": weight, "bias": bias}, self.train_set)
        return flcore.Update({"weight": weight, "bias": bias}, weight=len(classes), metrics={"train_loss": loss})

    def validate(self, model: flcore.Arrays, _: flcore.Task) -> flcore.Update:
        """Measure the global model on the examples that were held out."""
        loss, accuracy = measure(model, self.held_out)
        return flcore.Update(weight=HELD_OUT, metrics={"loss": loss, "accuracy": accuracy})


def probabilities(
    features: npt.NDArray[np.float32], weight: npt.NDArray[np.float32], bias: npt.NDArray[np.float32]
) -> npt.NDArray[np.float32]:
    """Return the probability of each class, a row for each example."""
    scores = features @ weight + bias
    powers: npt.NDArray[np.float32] = np.exp(scores - scores.max(axis=1, keepdims=True))
    powers /= powers.sum(axis=1, keepdims=True)
    return powers


def measure(model: flcore.Arrays, examples: Examples) -> tuple[float, float]:
    """Return the cross-entropy and the accuracy of a model."""
    features, classes = examples
    found = probabilities(features, model["weight"], model["bias"])
    chosen = found[np.arange(len(classes)), classes]
    return float(-np.log(np.maximum(chosen, 1e-9)).mean()), float((found.argmax(axis=1) == classes).mean())
