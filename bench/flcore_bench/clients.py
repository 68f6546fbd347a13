"""What the clients of a measurement hold: models of plausible numbers, in every wire dtype, and their weights."""

from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
from flcore_kernels import Part, Quantized, backend, storage_dtype

CLIENTS = 10
NOISE = 1 << 20
BLOCK = 256

Array = npt.NDArray[Any]


def make_clients(count: int, elements: int) -> list[Array]:
    """Return float32 models of `elements` parameters: one run of normal noise, begun elsewhere by each client."""
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
    """Return how many examples each client trained on."""
    return [100.0 + 7.0 * (client % 50) for client in range(count)]


def touched(elements: int, dtype: str = "float32") -> Array:
    """Return an array whose pages are all there; a fresh one gets them when it is first written to."""
    array = np.empty(elements, dtype)
    array.fill(0)
    return array


def encoded(models: list[Array], dtype: str) -> list[Part]:
    """Return models in another wire dtype, as the kernels take them."""
    if dtype == "float32":
        return list(models)
    cpu = backend("cpu")
    parts: list[Part] = []
    for model in models:
        part: Quantized | Array
        if dtype.startswith("int8["):
            part = Quantized(np.empty(model.size, np.int8), np.empty(-(-model.size // BLOCK), np.float32))
        else:
            part = np.empty(model.size, storage_dtype(dtype))
        cpu.encode(model, part, dtype)
        parts.append(part)
    return parts


def buffers(parts: list[Part]) -> list[Array]:
    """Return the arrays that parts consist of, which a limit loop has to read."""
    return [array for part in parts for array in (part if isinstance(part, Quantized) else [np.asarray(part)])]


def as_numpy(part: Part, dtype: str) -> Array:
    """Return a 16-bit part as the NumPy array that a user would hold."""
    return np.asarray(part).view(ml_dtypes.bfloat16 if dtype == "bfloat16" else np.float16)
