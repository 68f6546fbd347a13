"""A model in files, of which no more is in memory than is asked for."""

import mmap
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from flcore_kernels import storage_dtype
from flcore_layout import Layout
from flcore_transport import Buffer, PieceRange

from flcore.model.arrays import AnyArrays, convert_like
from flcore.model.chunks import require_chunk
from flcore.model.dtypes import DTYPES, INTEGERS
from flcore.model.model import payload_layout
from flcore.model.open_file import OpenFile
from flcore.model.shard_layout import ShardLayout
from flcore.model.spec import ModelSpec


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

    def read(self, piece: PieceRange) -> list[Buffer]:
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
