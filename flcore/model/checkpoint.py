"""Models in files: safetensors in and out, one file or several with an index."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy.typing as npt

from flcore.model.chunks import ChunkSource, copy_chunks
from flcore.model.model import Arrays, NamedArrays
from flcore.model.model_paths import PathLike, split_model_path
from flcore.model.model_writer import ModelWriter
from flcore.model.shard_layout import SHARD_BYTES
from flcore.model.spec import ModelSpec
from flcore.model.stored_model import StoredModel, open_shards


def save(
    model: Arrays | ChunkSource,
    path: PathLike,
    metadata: Mapping[str, str] | None = None,
    *,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Write named arrays, a `Model` or a `StoredModel` to `path`: `NAME.safetensors`, or a directory.

    A name that ends in `.safetensors` means a file. All others mean a directory, in which the model is
    `model.safetensors`. It is written beside what is there and renamed, so that no half-written model is ever seen, and
    goes 2 MiB at a time. More than `shard_bytes` of values become several files and `NAME.safetensors.index.json`, for
    which `path` stands in `load` and `open_model`. Whatever the index of an earlier model led to is removed.
    """
    source = NamedArrays(ModelSpec.of(model), model) if isinstance(model, Mapping) else model
    directory, name = split_model_path(path)
    with ModelWriter(source.spec, directory, name, shard_bytes=shard_bytes, metadata=metadata) as writer:
        copy_chunks(source, writer)
        writer.commit().close()


def open_model(path: PathLike) -> StoredModel:
    """Open a model in files without reading its values: a safetensors file, an index, or a directory.

    In a directory, it is `model.safetensors` or else `model.safetensors.index.json`; `NAME.safetensors` that is not
    there stands for its index. Raises `SpecError`, naming the file and the tensor, for files that are no model or hold
    a dtype that flcore does not know, and `OSError` for files that cannot be read.
    """
    return StoredModel(*open_shards(Path(path)))


def load(path: PathLike) -> dict[str, npt.NDArray[Any]]:
    """Read a model's tensors into memory; `path` and errors are those of `open_model`."""
    with open_model(path) as stored:
        return {tensor.name: stored.tensor(tensor.name) for tensor in stored.spec.tensors}
