"""Checkpoints in safetensors files, one file or several with an index: `save`, `open_model`, `load`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy.typing as npt

from flcore.model.arrays import AnyArrays
from flcore.model.chunks import ChunkSource, copy_chunks
from flcore.model.model import NamedArrays
from flcore.model.model_paths import PathLike, split_model_path
from flcore.model.model_writer import ModelWriter
from flcore.model.shard_layout import SHARD_BYTES
from flcore.model.spec import ModelSpec
from flcore.model.stored_model import StoredModel, open_shards


def save(
    model: AnyArrays | ChunkSource,
    path: PathLike,
    metadata: Mapping[str, str] | None = None,
    *,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Write a model to safetensors files by an atomic replace.

    Readers see the old model or the new one, never a part. The shards of an earlier model are removed.

    Args:
        model: Arrays of any library by name, nested or not; a `Model` or a `StoredModel`. It is copied 2 MiB at a time.
        path: A file if it ends in `.safetensors`. Any other path is a directory, in which the model is
            `model.safetensors`.
        metadata: The metadata of each file, such as `{"format": "pt"}`. Default: None, no metadata.
        shard_bytes: The largest size of a file's values. A larger model becomes several files and
            `NAME.safetensors.index.json`; `load` and `open_model` find it by the same path. Default: 5 GB.

    Raises:
        SpecError: The arrays form no valid model, or the path is invalid.
        OSError: The files cannot be written.

    Example:
        >>> import numpy as np
        >>> save({"w": np.zeros(3, np.float32)}, tmp_path / "model.safetensors", {"format": "pt"})
    """
    source = NamedArrays(ModelSpec.of(model), model) if isinstance(model, Mapping) else model
    directory, name = split_model_path(path)
    with ModelWriter(source.spec, directory, name, shard_bytes=shard_bytes, metadata=metadata) as writer:
        copy_chunks(source, writer)
        writer.commit().close()


def open_model(path: PathLike) -> StoredModel:
    """Open a model in files without reading its values.

    Args:
        path: A safetensors file, an index, or a directory with `model.safetensors` or `model.safetensors.index.json`.
            If `NAME.safetensors` does not exist, it stands for its index.

    Returns:
        The model, read in ranges. Use it as a context manager, or close it.

    Raises:
        SpecError: The files are no model, or have a dtype that flcore does not support. Names the file and the tensor.
        OSError: A file cannot be read.
    """
    return StoredModel(*open_shards(Path(path)))


def load(path: PathLike) -> dict[str, npt.NDArray[Any]]:
    """Read the tensors of a model into memory.

    Args:
        path: The model (see `open_model`).

    Returns:
        The tensors by name.

    Raises:
        SpecError: The files are no model.
        OSError: A file cannot be read.
    """
    with open_model(path) as stored:
        return {tensor.name: stored.tensor(tensor.name) for tensor in stored.spec.tensors}
