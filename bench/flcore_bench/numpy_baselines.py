"""Means in plain NumPy: the baselines of the kernels."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from flcore_kernels import Operand, Quantized

from flcore_bench.workload import BLOCK, as_numpy

Array = npt.NDArray[Any]


def average_of_stack(models: Sequence[Array], weights: Sequence[float]) -> Array:
    """`np.average` over a stack made in the call, as most code does it."""
    result: Array = np.average(np.stack(models), axis=0, weights=np.array(weights, np.float32))
    return result


def matrix_product(matrix: Array, shares: Array, out: Array) -> None:
    """One BLAS matrix-vector product over a matrix stacked beforehand: NumPy's fastest way."""
    np.dot(shares, matrix, out=out)


def upcast_and_add(operands: Sequence[Operand], weights: Sequence[float], dtype: str) -> Array:
    """Convert each model to float32, scale it, add it; divide at the end."""
    total: Array | None = None
    for operand, weight in zip(operands, weights, strict=True):
        values = _float32(operand, dtype) * np.float32(weight)
        if total is None:
            total = values
        else:
            total += values
    assert total is not None  # noqa: S101 - a measurement has clients
    total /= np.float32(sum(weights))
    return total


def _float32(operand: Operand, dtype: str) -> Array:
    if isinstance(operand, Quantized):
        blocks = operand.codes.reshape(-1, BLOCK).astype(np.float32) * operand.scales[:, None]
        return blocks.reshape(-1)
    return as_numpy(operand, dtype).astype(np.float32)
