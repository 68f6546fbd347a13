"""A model in files: opened from a path, with its headers checked, and read in ranges.

`open_shards` finds one file, an index, or a directory that holds either. `StoredModel` has no more in memory than is
asked for.
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
from flcore.model.open_file import OpenFile
from flcore.model.safetensors_header import Header, read_header
from flcore.model.shard_layout import ShardLayout, read_index
from flcore.model.spec import ModelSpec, TensorSpec

ATTEMPTS = 5
"""How often a model is looked for anew that is replaced while it is being opened."""


def open_shards(path: Path) -> tuple[ShardLayout, tuple[OpenFile, ...]]:
    """Open a model's files (see `checkpoint.open_model`), and say what lies in them.

    Raises `SpecError` for files that are no model, and `OSError` for those that cannot be read.
    """
    for attempt in range(ATTEMPTS):
        found = resolve_checkpoint(path)
        try:
            return _open_index(found) if found.name.endswith(INDEX_SUFFIX) else _open_single(found)
        except FileNotFoundError as error:
            if attempt == ATTEMPTS - 1:
                raise _missing_file_error(error, path, found) from error
    raise AssertionError("the last attempt returns or raises")


def resolve_checkpoint(path: Path) -> Path:
    """Return the file to begin with: a safetensors file, or an index.

    A file goes before an index of the same name, as in Hugging Face's loaders; `NAME.safetensors` that is not there
    stands for its index.
    """
    single = path / f"model{MODEL_SUFFIX}" if path.is_dir() else path
    if single.name.endswith(MODEL_SUFFIX) and not single.is_file():
        index = single.with_name(single.name.removesuffix(MODEL_SUFFIX) + INDEX_SUFFIX)
        if index.is_file():
            return index
    return single


def count_files(paths: Sequence[PathLike], base: PathLike | None = None) -> tuple[int, list[int]]:
    """Return how many files a result like the first model and the base take, and how many each model takes."""
    models = [_file_count(Path(path)) for path in paths]
    return models[0] + (0 if base is None else _file_count(Path(base))), models


def _file_count(path: Path) -> int:
    with suppress(OSError, SpecError):  # it is told when it is opened
        found = resolve_checkpoint(path)
        if found.name.endswith(INDEX_SUFFIX):
            return len(set(read_index(found).values()))
    return 1


def _missing_file_error(error: FileNotFoundError, path: Path, found: Path) -> Exception:
    if str(error.filename) != str(found):
        return SpecError(f"{found} names a file that is not there: {error.filename}")
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
            raise SpecError(f"{path}: tensor {tensor!r} is not in {name}, where the index has it")
    return ShardLayout(_spec(tuple(tensors[name] for name in weight_map), path), headers, has_index=True), files


def _require_index_agreement(weight_map: dict[str, str], name: str, header: Header, index: Path, path: Path) -> None:
    for tensor in header.tensors:
        if weight_map.get(tensor.name) != name:
            raise SpecError(f"{path}: tensor {tensor.name!r} is in this file, but not according to {index}")


def _spec(tensors: tuple[TensorSpec, ...], path: Path) -> ModelSpec:
    try:
        return ModelSpec(tensors)
    except SpecError as error:
        raise SpecError(f"{path}: {error}") from error


class StoredModel:
    """A model's values, in files that are kept open: what is replaced or removed meanwhile is read as it was.

    It is a `ChunkSource` and the source of a payload, from any thread. `open_model` makes one, `ModelWriter.commit`
    another. What it reads goes straight into the array that it returns; nothing else grows with the model.
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

    def close(self) -> None:
        """Let go of the files; what `arrays` returned stays readable."""
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
        """What this model's payload consists of."""
        return payload_layout(self.spec)

    def reordered(self, spec: ModelSpec, name: str | None = None) -> "StoredModel":
        """Return this model with its tensors in another order, or raise `TensorMismatch` if `spec` has others.

        `name` is what the error calls this model; by default, its first file.
        """
        name = str(self.files[0]) if name is None else name

        def remedy(expected: str, found: str) -> str:
            if {expected, found} & INTEGERS:
                return ""
            return f"`--dtype {expected}` combines floats of several dtypes"

        spec.require_match(self.spec, client=name, sender="checkpoint", remedy=remedy)
        return StoredModel(replace(self.shards, spec=spec), self.open_files)

    def chunk(self, segment: int, first: int, stop: int) -> npt.NDArray[Any]:
        """Return elements `first` to `stop` of a segment: a new array, of its storage dtype, zero in the gaps."""
        self.spec.segments[segment].require_range(first, stop)
        chunk = np.empty(stop - first, storage_dtype(self.spec.segments[segment].dtype))
        self.read_into(segment, first, chunk)
        return chunk

    def read_into(self, segment: int, first: int, values: npt.NDArray[Any]) -> None:
        """Overwrite an array with a segment's elements from `first` on."""
        files, spec = self.open_files, self.spec.segments[segment]
        stop = require_chunk(spec, first, values)
        position = first
        for span in spec.overlapping(first, stop):
            if span.start > position:
                values[position - first : span.start - first] = 0
            position = span.stop
        if position < stop:
            values[position - first :] = 0
        for number, offset, buffers in self.shards.byte_ranges(segment, first, values):
            files[number].read_at(buffers, offset)

    def read(self, piece: SegmentRange) -> list[Buffer]:
        """Return the bytes of a range, read for this call."""
        return [self.chunk(piece.segment, piece.first, piece.first + piece.count).view(np.uint8).data]

    def tensor(self, name: str) -> npt.NDArray[Any]:
        """Return a tensor's values in a new array; raises `KeyError` for a name that the model has not got."""
        place = self.shards.locations[name]
        values = np.empty(place.tensor.shape, DTYPES[place.tensor.dtype])
        self.open_files[place.file].read_at([values.reshape(-1).view(np.uint8).data], place.begin)
        return values

    def arrays(self, like: AnyArrays | None = None) -> dict[str, Any]:
        """Return the tensors by name, in the order of the spec, read-only and mapped: memory for what is touched.

        With `like`, named arrays of the same model: copies of its arrays' kinds, nested as it is.

        They outlive this object. The files must not be cut or overwritten in place while they are mapped; replacing
        them does no harm.
        """
        maps = [mmap.mmap(file.descriptor, 0, access=mmap.ACCESS_READ) for file in self.open_files]
        places = [self.shards.locations[tensor.name] for tensor in self.spec.tensors]
        mapped = {
            tensor.name: np.ndarray(tensor.shape, DTYPES[tensor.dtype], maps[file], begin)
            for tensor, file, begin in places
        }
        return mapped if like is None else convert_like(mapped, like)
