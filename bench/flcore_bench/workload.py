"""The workload of the kernel benchmarks: their sizes, and models and weights of synthetic clients."""

from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
from flcore_kernels import Operand, Quantized, backend, storage_dtype

CLIENTS = 10
NOISE = 1 << 20
BLOCK = 256
"""Elements that share a scale in int8."""

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Sizes:
    """Sizes and repetitions of one run.

    Attributes:
        scale: "small" or "full".
        threads: Threads of flcore, of the limit and of peers.
        rounds: How often each contender is timed.
        elements: Parameters of a flat model.
        tensors: Tensors of the model with many small ones.
        grid_clients: Numbers of clients in MetisFL's grid.
        grid_elements: Numbers of parameters in MetisFL's grid.
        first_uses: Cold starts with an empty kernel cache.
    """

    scale: str
    threads: int
    rounds: int
    elements: int
    tensors: int
    grid_clients: tuple[int, ...]
    grid_elements: tuple[int, ...]
    first_uses: int

    @classmethod
    def of(cls, scale: str, threads: int) -> "Sizes":
        """Return the sizes of `small` (seconds, 200 MB) or `full` (minutes, 16 GB)."""
        if scale == "small":
            return cls(scale, threads, 3, 1 << 20, 500, (10, 20), (100_000, 500_000), 1)
        grid = (10, 50, 100, 200), (100_000, 1_000_000, 10_000_000)
        return cls(scale, threads, 7, 1 << 26, 10_000, *grid, 3)


def format_count(elements: int) -> str:
    """Return a number of parameters in millions.

    >>> format_count(67_108_864), format_count(100_000)
    ('67.1 M', '0.1 M')
    """
    return f"{elements / 1e6:.1f} M"


def make_clients(count: int, elements: int) -> list[Array]:
    """Return `count` float32 models of `elements` parameters: the same normal noise, rotated differently per client."""
    noise = np.random.default_rng(0).standard_normal(NOISE, np.float32) * np.float32(0.02)
    models = []
    for client in range(count):
        model = np.empty(elements, np.float32)
        own = np.roll(noise, 977 * client)
        for start in range(0, elements, NOISE):
            model[start : start + NOISE] = own[: min(NOISE, elements - start)]
        models.append(model)
    return models


def make_weights(count: int) -> list[float]:
    """Return a number of examples for each client."""
    return [100.0 + 7.0 * (client % 50) for client in range(count)]


def prefaulted(elements: int, dtype: str = "float32") -> Array:
    """Return an array of zeros whose pages are resident. A fresh array would fault them in during the measurement."""
    array = np.empty(elements, dtype)
    array.fill(0)
    return array


def encode_models(models: list[Array], dtype: str) -> list[Operand]:
    """Return models in another wire dtype, as the kernels take them."""
    if dtype == "float32":
        return list(models)
    cpu = backend("cpu")
    parts: list[Operand] = []
    for model in models:
        part: Quantized | Array
        if dtype.startswith("int8["):
            part = Quantized(np.empty(model.size, np.int8), np.empty(-(-model.size // BLOCK), np.float32))
        else:
            part = np.empty(model.size, storage_dtype(dtype))
        cpu.encode(model, part, dtype)
        parts.append(part)
    return parts


def buffers(parts: list[Operand]) -> list[Array]:
    """Return the arrays that parts consist of: codes and scales are two. A limit loop reads these arrays."""
    return [array for part in parts for array in (part if isinstance(part, Quantized) else [np.asarray(part)])]


def as_numpy(part: Operand, dtype: str) -> Array:
    """Return a view of a 16-bit part with the NumPy dtype that a user's array has."""
    return np.asarray(part).view(ml_dtypes.bfloat16 if dtype == "bfloat16" else np.float16)
