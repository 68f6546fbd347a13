"""Clients that do not train, so only flcore's own cost is measured."""

import numpy as np

import flcore


def initial_model(megabytes: int) -> flcore.Arrays:
    """Return a float32 model of `megabytes` MB, and the number of the round."""
    return {"weight": np.full((megabytes, 250_000), 0.5, np.float32), "round": np.zeros(1, np.float32)}


def train(model: flcore.Arrays, task: flcore.Task) -> flcore.Update:
    """Return the received model, with another round: a model that has not changed would not be downloaded."""
    return flcore.Update({"weight": model["weight"], "round": np.full(1, task.round, np.float32)}, weight=1)
