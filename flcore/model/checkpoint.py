"""Models in files: safetensors in and out."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import safetensors
from safetensors.numpy import load_file, save_file

from flcore.errors import SpecError
from flcore.model.dtypes import dtype_name
from flcore.model.model import Arrays
from flcore.model.spec import ModelSpec


def save(arrays: Arrays, path: str | os.PathLike[str], metadata: Mapping[str, str] | None = None) -> None:
    """Write named arrays to a safetensors file: beside it first, then renamed, so that it is never seen half-written.

    Tensors are written from their own memory; one that is not contiguous is copied first.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}.partial")
    ModelSpec.of(arrays)
    contiguous = {name: np.require(array, requirements="C") for name, array in arrays.items()}
    try:
        save_file(contiguous, beside, dict(metadata or {}))
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def load(path: str | os.PathLike[str]) -> dict[str, npt.NDArray[Any]]:
    """Read a safetensors file, or raise `SpecError` for one that is none or holds a dtype that flcore does not know."""
    try:
        arrays = load_file(path)
    except (safetensors.SafetensorError, KeyError) as error:
        raise SpecError(f"{path} is no readable safetensors file: {error}") from error
    for name, array in arrays.items():
        try:
            dtype_name(array.dtype)
        except SpecError as error:
            raise SpecError(f"{path}: tensor {name!r}: {error}") from error
    return arrays
