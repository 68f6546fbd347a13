"""Clients that train nothing: what remains is what flcore itself costs."""

import numpy as np

import flcore


def initial_model(megabytes: int) -> flcore.Arrays:
    """Return a float32 model of so many megabytes."""
    return {"weight": np.full((megabytes, 250_000), 0.5, np.float32)}


def train(model: flcore.Arrays, _: flcore.Task) -> flcore.Update:
    """Return the model as it came."""
    return flcore.Update(model, weight=1)
