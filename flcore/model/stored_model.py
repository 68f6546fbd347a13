"""A model in files: found at a path, opened with its headers checked, and read in ranges.

`open_shards` opens one file, an index, or a directory that contains either. `StoredModel` reads only the requested
ranges, so memory does not grow with the model.
"""

import mmap
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from flcore_kernels import storage_dtype
from flcore_layout import Layout, SegmentRange
from flcore_transport import Buffer

from flcore.errors import SpecError
from flcore.model.arrays import AnyArrays, convert_like
from flcore.model.chunks import require_chunk
from flcore.model.dtypes import DTYPES, INTEGERS
from flcore.model.model import payload_layout
from flcore.model.model_paths import INDEX_SUFFIX, MODEL_SUFFIX, PathLike, describe_directory
from flcore.model.model_table import describe_model, model_html
from flcore.model.open_file import OpenFile
from flcore.model.safetensors_header import Header, read_header
from flcore.model.shard_layout import ShardLayout, read_index
from flcore.model.spec import ModelSpec, TensorSpec

OPEN_TRIES = 5
"""How often opening is tried. A replacement between reading the index and opening the shards removes the shards."""


def open_shards(path: Path) -> tuple[ShardLayout, tuple[OpenFile, ...]]:
    """Open the files of a model (see `checkpoint.open_model`).

    Returns:
        The layout of the files, and the open files in the same order.

    Raises:
        SpecError: The files are no model.
        OSError: A file cannot be read.
    """
    for number in range(1, OPEN_TRIES + 1):
        found = resolve_checkpoint(path)
        try:
            return _open_index(found) if found.name.endswith(INDEX_SUFFIX) else _open_single(found)
        except FileNotFoundError as error:
            if number == OPEN_TRIES:
                raise _missing_file_error(error, path, found) from error
    raise AssertionError("the last try returns or raises")


def resolve_checkpoint(path: Path) -> Path:
    """Return the safetensors file or the index that a path stands for.

    A file takes precedence over an index of the same name, as in Hugging Face's loaders. If `NAME.safetensors` does not
    exist, it stands for its index.
    """
    single = path / f"model{MODEL_SUFFIX}" if path.is_dir() else path
    if single.name.endswith(MODEL_SUFFIX) and not single.is_file():
        index = single.with_name(single.name.removesuffix(MODEL_SUFFIX) + INDEX_SUFFIX)
        if index.is_file():
            return index
    return single


def count_files(paths: Sequence[PathLike], base: PathLike | None = None) -> tuple[int, list[int]]:
    """Count the files that are open while models are combined.

    Args:
        paths: The models.
        base: The base model, if any.

    Returns:
        The number of files of the base and of a result like the first model, and the number of files of each model.
    """
    models = [_file_count(Path(path)) for path in paths]
    return models[0] + (0 if base is None else _file_count(Path(base))), models


def _file_count(path: Path) -> int:
    with suppress(OSError, SpecError):  # reported when it is opened
        found = resolve_checkpoint(path)
        if found.name.endswith(INDEX_SUFFIX):
            return len(set(read_index(found).values()))
    return 1


def _missing_file_error(error: FileNotFoundError, path: Path, found: Path) -> Exception:
    if str(error.filename) != str(found):
        return SpecError(f"{found} names a file that does not exist: {error.filename}")
    if path.is_dir():
        return SpecError(
            f"the directory {path} holds neither model{MODEL_SUFFIX} nor model{INDEX_SUFFIX}; "
            f"{describe_directory(path)}"
        )
    return error


def _open_single(path: Path) -> tuple[ShardLayout, tuple[OpenFile, ...]]:
    file = OpenFile(path)
    header = read_header(file)
    return ShardLayout(_spec(header.tensors, path), (header,), has_index=False), (file,)


def _open_index(path: Path) -> tuple[ShardLayout, tuple[OpenFile, ...]]:
    weight_map = read_index(path)
    names = list(dict.fromkeys(weight_map.values()))
    files = tuple(OpenFile(path.parent / name) for name in names)
    headers = tuple(map(read_header, files))
    tensors: dict[str, TensorSpec] = {}
    for name, file, header in zip(names, files, headers, strict=True):
        _require_index_agreement(weight_map, name, header, path, file.path)
        tensors |= {tensor.name: tensor for tensor in header.tensors}
    for tensor, name in weight_map.items():
        if tensor not in tensors:
            raise SpecError(f"{path}: tensor {tensor!r} is not in {name}, although the index says so")
    return ShardLayout(_spec(tuple(tensors[name] for name in weight_map), path), headers, has_index=True), files


def _require_index_agreement(weight_map: dict[str, str], name: str, header: Header, index: Path, path: Path) -> None:
    for tensor in header.tensors:
        if weight_map.get(tensor.name) != name:
            raise SpecError(f"{path}: tensor {tensor.name!r} is in this file, although {index} does not say so")


def _spec(tensors: tuple[TensorSpec, ...], path: Path) -> ModelSpec:
    try:
        return ModelSpec(tensors)
    except SpecError as error:
        raise SpecError(f"{path}: {error}") from error


class StoredModel:
    """A model in files, opened by `open_model` or written by `ModelWriter`. Any thread may read from it.

    The files stay open. If they are replaced or removed meanwhile, the old version is read. It is a `ChunkSource` and
    the source of a payload. Values are read directly into the array that is returned.

    Attributes:
        spec: The tensors and their places in the segments.
        shards: The layout of the files.
        files: The names of the files.
    """

    def __init__(self, shards: ShardLayout, files: tuple[OpenFile, ...]) -> None:
        self.spec: ModelSpec = shards.spec
        self.shards = shards
        self.files: tuple[Path, ...] = tuple(file.path for file in files)
        self._open: tuple[OpenFile, ...] | None = files

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<{describe_model('StoredModel', self.spec)}, {self.files[0]}>"

    def _repr_html_(self) -> str:
        return model_html(f"StoredModel {self.files[0]}", self.spec)

    def close(self) -> None:
        """Close the files, unless another object uses them. Arrays that `arrays` returned stay readable."""
        self._open = None

    @property
    def open_files(self) -> tuple[OpenFile, ...]:
        """The files, in the order of `files`. Raises `ValueError` once the model is closed."""
        files = self._open
        if files is None:
            raise ValueError(f"the model in {self.files[0]} was closed")
        return files

    @property
    def layout(self) -> Layout:
        """The layout of this model's payload."""
        return payload_layout(self.spec)

    def reordered(self, spec: ModelSpec, name: str | None = None) -> "StoredModel":
        """Return this model with its tensors in another order.

        Args:
            spec: The same tensors, in the other order.
            name: The name of this model in errors. Default: None, its first file.

        Returns:
            A model of the same open files.

        Raises:
            TensorMismatch: `spec` has other tensors.
        """
        name = str(self.files[0]) if name is None else name

        def remedy(expected: str, found: str) -> str:
            if {expected, found} & INTEGERS:
                return ""
            return f"`--dtype {expected}` combines floats of several dtypes"

        spec.require_match(self.spec, client=name, sender="checkpoint", remedy=remedy)
        return StoredModel(replace(self.shards, spec=spec), self.open_files)

    def chunk(self, segment: int, first: int, stop: int) -> npt.NDArray[Any]:
        """Read elements `first` to `stop` of a segment into a new array (see `ChunkSource.chunk`)."""
        self.spec.segments[segment].require_range(first, stop)
        chunk = np.empty(stop - first, storage_dtype(self.spec.segments[segment].dtype))
        self.read_into(segment, first, chunk)
        return chunk

    def read_into(self, segment: int, first: int, values: npt.NDArray[Any]) -> None:
        """Read a segment's elements from `first` on into an array, with zeros in the gaps."""
        files, spec = self.open_files, self.spec.segments[segment]
        stop = require_chunk(spec, first, values)
        position = first  # files have no gaps, so the array's gaps are zeroed here
        for span in spec.overlapping(first, stop):
            if span.start > position:
                values[position - first : span.start - first] = 0
            position = span.stop
        if position < stop:
            values[position - first :] = 0
        for number, offset, buffers in self.shards.byte_ranges(segment, first, values):
            files[number].read_at(buffers, offset)

    def read(self, range_: SegmentRange) -> list[Buffer]:
        """Read the bytes of a range."""
        return [self.chunk(range_.segment, range_.first, range_.first + range_.count).view(np.uint8).data]

    def tensor(self, name: str) -> npt.NDArray[Any]:
        """Read a tensor into a new array. Raises `KeyError` if the model has no tensor of this name."""
        location = self.shards.locations[name]
        values = np.empty(location.tensor.shape, DTYPES[location.tensor.dtype])
        self.open_files[location.file].read_at([values.reshape(-1).view(np.uint8).data], location.begin)
        return values

    def arrays(self, like: AnyArrays | None = None) -> dict[str, Any]:
        """Return the tensors by name, in the order of the spec, as memory-mapped arrays.

        The arrays stay readable after this object is closed. While they are in use, the files must not be truncated or
        overwritten in place; replacing them is safe.

        Args:
            like: Named arrays of the same model. The result has their libraries, devices and nesting. Default: None.

        Returns:
            Read-only arrays. Pages are read on first access. With `like`, copies.

        Raises:
            SpecError: `like` has other tensors.
        """
        maps = [mmap.mmap(file.descriptor, 0, access=mmap.ACCESS_READ) for file in self.open_files]
        locations = [self.shards.locations[tensor.name] for tensor in self.spec.tensors]
        mapped = {
            tensor.name: np.ndarray(tensor.shape, DTYPES[tensor.dtype], maps[file], begin)
            for tensor, file, begin in locations
        }
        return mapped if like is None else convert_like(mapped, like)
