"""Plain NumPy: the usual mean, and the fastest one."""

from typing import Any

import numpy as np
from flcore_bench.numpy_baselines import average_of_stack, matrix_product

from flcore_bench_peers.contest import Array, Contender, Models

PACKAGE = "numpy"


def contenders(models: Models, weights: list[float], threads: int) -> list[Contender]:  # noqa: ARG001 - BLAS has its own
    """Return `np.average` over a stack made in the call, and one BLAS product over a matrix stacked beforehand."""
    names = list(models[0])
    matrices = [np.stack([model[name] for model in models]) for name in names]
    shares = np.array(weights, np.float32) / np.float32(sum(weights))
    outs = [np.zeros_like(models[0][name]) for name in names]

    def products() -> list[Array]:
        for matrix, out in zip(matrices, outs, strict=True):
            matrix_product(matrix, shares, out)
        return outs

    def averages() -> list[Any]:
        return [average_of_stack([model[name] for model in models], weights) for name in names]

    return [
        Contender(
            "NumPy BLAS gemv, stacked beforehand", "NumPy (BLAS)", products, lambda result: result[0], {"flat": 1.4}
        ),
        Contender("NumPy np.average(np.stack)", "NumPy (average)", averages, lambda result: result[0]),
    ]
