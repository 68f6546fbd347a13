"""A linear classifier of scikit-learn: each client trains on its own examples, and only the model travels."""

import numpy as np
import numpy.typing as npt
from sklearn.datasets import load_digits
from sklearn.linear_model import SGDClassifier
from sklearn.metrics import log_loss

import flcore

CLASSES, HELD_OUT = np.arange(10), 0.25
Examples = tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]


def load(site: flcore.Site) -> Examples:
    """Return the examples of a site: a row of features each, and their classes."""
    # YOUR OWN CODE GOES HERE: read the data of this site. These are scikit-learn's handwritten digits, in equal parts.
    features, classes = load_digits(return_X_y=True)
    own = np.random.default_rng(site.seed).permutation(len(classes))[site.index :: len(site.clients)]
    return features[own] / 16, classes[own]


def initial_model(_: int) -> dict[str, npt.NDArray[np.float64]]:
    """Return the first global model: the parameters of a classifier that has seen nothing."""
    return {"coef": np.zeros((len(CLASSES), 64)), "intercept": np.zeros(len(CLASSES))}


class Client:
    """One site: it holds out some of its examples, and trains on the others."""

    def __init__(self, site: flcore.Site) -> None:
        features, classes = load(site)
        cut = int(HELD_OUT * len(classes))
        self.train_set, self.held_out = (features[cut:], classes[cut:]), (features[:cut], classes[:cut])

    def train(self, model: flcore.Arrays, task: flcore.Task) -> flcore.Update:
        """Train the global model with `partial_fit`, once for each epoch."""
        rate = task.hyperparameters["learning_rate"]
        classifier = classifier_of(model, learning_rate="constant", eta0=rate, random_state=task.seed % 2**32)
        for _ in range(task.hyperparameters["epochs"]):
            classifier.partial_fit(*self.train_set, classes=CLASSES)
        arrays = {"coef": classifier.coef_, "intercept": classifier.intercept_}
        loss = log_loss(self.train_set[1], classifier.predict_proba(self.train_set[0]), labels=CLASSES)
        return flcore.Update(arrays, weight=len(self.train_set[1]), metrics={"train_loss": loss})

    def validate(self, model: flcore.Arrays, _: flcore.Task) -> flcore.Update:
        """Measure the global model on the examples that were held out."""
        classifier, (features, classes) = classifier_of(model), self.held_out
        loss = log_loss(classes, classifier.predict_proba(features), labels=CLASSES)
        metrics = {"loss": loss, "accuracy": classifier.score(features, classes)}
        return flcore.Update(weight=len(classes), metrics=metrics)


def classifier_of(model: flcore.Arrays, **settings: object) -> SGDClassifier:
    """Return a classifier with the parameters of a model, copied because it trains them in place."""
    classifier = SGDClassifier(loss="log_loss", **settings)
    classifier.coef_, classifier.intercept_ = model["coef"].copy(), model["intercept"].copy()
    classifier.classes_ = CLASSES
    return classifier
