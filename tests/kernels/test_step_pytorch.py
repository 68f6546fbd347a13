"""`step` against PyTorch's optimizers, over fifty steps."""

import importlib.util
from functools import partial
from typing import Any

import numpy as np
import pytest
from flcore_kernels import Adagrad, Adam, Momentum, Optimizer, ServerLr

from tests.kernels.test_step import changed, next_of, start_of

needs_torch = pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="needs PyTorch")


@pytest.mark.torch
@needs_torch
@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("name", ["SGD", "momentum", "Nesterov", "Adagrad", "Adam"])
def test_fifty_steps_agree_with_pytorch(name: str, dtype: str) -> None:
    import torch

    rng, size = np.random.default_rng(6), 200
    base = rng.standard_normal(size).astype(dtype)
    parameter = torch.nn.Parameter(torch.tensor(base))
    decays = (0.9, 0.999)
    ours: dict[str, Optimizer] = {
        "SGD": ServerLr(0.1),
        "momentum": Momentum(0.1, 0.9),
        "Nesterov": Momentum(0.1, 0.9, nesterov=True),
        "Adagrad": Adagrad(0.1, 0.0, 1e-8),
        "Adam": Adam(0.01, *decays, 1e-6),
    }
    optimizer = ours[name]
    theirs: Any = {
        "SGD": partial(torch.optim.SGD, lr=0.1),
        "momentum": partial(torch.optim.SGD, lr=0.1, momentum=0.9),
        "Nesterov": partial(torch.optim.SGD, lr=0.1, momentum=0.9, nesterov=True),
        "Adagrad": partial(torch.optim.Adagrad, lr=0.1, eps=1e-8),
        "Adam": partial(torch.optim.Adam, lr=0.01, betas=decays, eps=1e-6),
    }[name]([parameter])
    state = start_of(optimizer, dtype, size, v=0.0)
    for t in range(1, 51):
        change = rng.standard_normal(size).astype(dtype)
        now = optimizer
        if name == "Adam":
            grown = float(np.sqrt(1 - decays[1] ** t))
            now = changed(optimizer, lr=0.01 * grown / (1 - decays[0] ** t), tau=1e-6 * grown)
        base, state = next_of(change, base, state, now, dtype, mean_of="differences")
        parameter.grad = torch.tensor(-change)
        theirs.step()
    tolerance = 1e-12 if dtype == "float64" else 2e-6
    assert np.allclose(base, parameter.detach().numpy(), rtol=tolerance, atol=tolerance)
