"""A small network in PyTorch: each client trains on its own examples, and only the model travels."""

from typing import Any

import torch
from torch.nn.functional import cross_entropy

import flcore

CLASSES, HELD_OUT = 3, 100


def load(site: flcore.Site) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the examples of a site: a row of features each, and their classes."""
    # YOUR OWN CODE GOES HERE: read the data of this site. These are synthetic: points on the arms of a spiral.
    rng = torch.Generator().manual_seed(1_000 * site.seed + site.index)
    classes = torch.randint(CLASSES, (500,), generator=rng)
    radius = torch.rand(500, generator=rng)
    angle = 4 * radius + 2 * torch.pi / CLASSES * classes + 0.15 * torch.randn(500, generator=rng)
    return torch.stack([radius * angle.cos(), radius * angle.sin()], dim=1), classes


def network() -> torch.nn.Sequential:
    """Return the network: two hidden layers with ReLU."""
    return torch.nn.Sequential(
        torch.nn.Linear(2, 32),
        torch.nn.ReLU(),
        torch.nn.Linear(32, 32),
        torch.nn.ReLU(),
        torch.nn.Linear(32, CLASSES),
    )


def initial_model(seed: int) -> dict[str, Any]:
    """Return the first global model: PyTorch's random parameters. A state dict is a model."""
    torch.manual_seed(seed)
    return dict(network().state_dict())


class Client:
    """One site: it holds out some of its examples, and trains on the others."""

    def __init__(self, site: flcore.Site) -> None:
        features, classes = load(site)
        self.train_set = features[HELD_OUT:], classes[HELD_OUT:]
        self.held_out = features[:HELD_OUT], classes[:HELD_OUT]

    def train(self, model: flcore.Arrays, task: flcore.Task) -> flcore.Update:
        """Train the global model with Adam."""
        torch.manual_seed(task.seed)
        net, (features, classes) = with_parameters(model), self.train_set
        settings = task.hyperparameters
        optimizer = torch.optim.Adam(net.parameters(), lr=settings["learning_rate"])
        for _ in range(settings["epochs"]):
            for batch in torch.randperm(len(classes)).split(settings["batch_size"]):
                optimizer.zero_grad()
                cross_entropy(net(features[batch]), classes[batch]).backward()
                optimizer.step()
        loss, _ = measure(net, features, classes)
        return flcore.Update(dict(net.state_dict()), weight=len(classes), metrics={"train_loss": loss})

    def validate(self, model: flcore.Arrays, _: flcore.Task) -> flcore.Update:
        """Measure the global model on the examples that were held out."""
        loss, accuracy = measure(with_parameters(model), *self.held_out)
        return flcore.Update(weight=HELD_OUT, metrics={"loss": loss, "accuracy": accuracy})


def with_parameters(model: flcore.Arrays) -> torch.nn.Sequential:
    """Return the network with the parameters of a model: copies, because the arrays are read-only."""
    net = network()
    net.load_state_dict({name: torch.tensor(array) for name, array in model.items()})
    return net


def measure(net: torch.nn.Sequential, features: torch.Tensor, classes: torch.Tensor) -> tuple[float, float]:
    """Return the cross-entropy and the accuracy of a network."""
    with torch.no_grad():
        scores = net(features)
    return cross_entropy(scores, classes).item(), (scores.argmax(dim=1) == classes).float().mean().item()
