"""Clients that do not train, so only flcore's own cost is measured."""

import numpy as np

import flcore


def initial_model(megabytes: int) -> flcore.Arrays:
    """Return a float32 model of `megabytes` MB."""
    return {"weight": np.full((megabytes, 250_000), 0.5, np.float32)}


def train(model: flcore.Arrays, _: flcore.Task) -> flcore.Update:
    """Return the received model."""
    return flcore.Update(model, weight=1)
