"""Writers of models in files: in ranges of segments, in any order, visible when complete.

`ShardWriter` writes the files of a `Destination`. `ModelWriter` replaces a lasting model; the models of
`TemporaryModels` are removed with their last reference.
"""

import os
import shutil
import threading
import weakref
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np
import numpy.typing as npt
from flcore_kernels import storage_dtype

from flcore.disk_errors import named
from flcore.errors import SpecError
from flcore.model.atomic_replace import AtomicReplace
from flcore.model.chunks import require_chunk
from flcore.model.open_file import OpenFile
from flcore.model.shard_layout import SHARD_BYTES, ShardLayout, plan_shards
from flcore.model.spec import ModelSpec
from flcore.model.stored_model import StoredModel


class Destination(Protocol):
    """The place of a new model's files: it creates them, and publishes or discards them."""

    def create(self, number: int) -> OpenFile:
        """Create file `number`."""
        ...

    def discard(self, count: int) -> None:
        """Remove the `count` files, those that still exist."""
        ...

    def commit(self, shards: ShardLayout, files: Sequence[OpenFile]) -> tuple[Path, ...]:
        """Publish the complete files as the model, and return their names."""
        ...


class ShardWriter:
    """Writes a model in ranges of its segments, in any order and from any thread. A `ModelSink`.

    As a context manager, it removes the files unless the model was committed.

    Args:
        plan: The layout of the files, and the bytes of each before its first tensor (see `plan_shards`).
        destination: The place of the files.
    """

    def __init__(self, plan: tuple[ShardLayout, list[bytes]], destination: Destination) -> None:
        self._shards, heads = plan
        self.spec: ModelSpec = self._shards.spec
        self._destination = destination
        self._done = [RangeSet() for _ in self.spec.segments]
        self._lock = threading.Lock()
        self._open: tuple[OpenFile, ...] | None = None
        try:
            files = tuple(destination.create(number) for number in range(len(heads)))
            for file, head, header in zip(files, heads, self._shards.headers, strict=True):
                with named(file.path):  # the full size at once, as ranges come in any order
                    os.ftruncate(file.descriptor, header.file_bytes)
                file.write_at([memoryview(head)], 0)
        except OSError:
            destination.discard(len(heads))
            raise
        self._open = files

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Abort, unless the model was committed."""
        self.abort()

    def chunk(self, segment: int, first: int, stop: int) -> npt.NDArray[Any]:
        """Return a new, uninitialized array for elements `first` to `stop` of a segment, in its storage dtype."""
        self.spec.segments[segment].require_range(first, stop)
        return np.empty(stop - first, storage_dtype(self.spec.segments[segment].dtype))

    def put(self, segment: int, first: int, values: npt.NDArray[Any]) -> None:
        """Write elements of a segment from `first` on; elements of gaps are ignored (see `ChunkSink.put`)."""
        files, stop = self._files(), require_chunk(self.spec.segments[segment], first, values)
        for number, offset, buffers in self._shards.byte_ranges(segment, first, values):
            files[number].write_at(buffers, offset)
        with self._lock:
            self._done[segment].add(first, stop)

    def commit(self) -> StoredModel:
        """Publish the model.

        Returns:
            The model, with its files open.

        Raises:
            SpecError: Some elements were never put. Nothing is published.
        """
        files = self._files()
        for segment, done in zip(self.spec.segments, self._done, strict=True):
            missing = done.first_missing(segment.elements)
            if missing is not None:
                tensor, _ = segment.locate(missing)
                raise SpecError(
                    f"tensor {tensor.name!r} is incomplete: {segment.dtype} element {missing} was never put"
                )
        for file, path in zip(files, self._destination.commit(self._shards, files), strict=True):
            file.path = path
        self._open = None
        return StoredModel(self._shards, files)

    def abort(self) -> None:
        """Remove the files, unless the model was committed."""
        if self._open is not None:
            self._open = None
            self._destination.discard(len(self._shards.headers))

    def _files(self) -> tuple[OpenFile, ...]:
        files = self._open
        if files is None:
            raise ValueError("the writer was committed or aborted")
        return files


class ModelWriter(ShardWriter):
    """Writes a model in chunks and replaces a model by it atomically. One process at a time may write a name.

    Args:
        spec: The model.
        directory: The directory. It is created if needed.
        name: The model's name. Its file is `NAME.safetensors`. Default: "model".
        shard_bytes: The largest size of a file's values. A larger model becomes several files and
            `NAME.safetensors.index.json`. Default: 5 GB.
        metadata: The metadata in the header of each file. Default: None, no metadata.

    Raises:
        SpecError: The name, the directory or the metadata is invalid.
        OSError: The files cannot be created.

    Example:
        >>> spec = ModelSpec.of({"w": np.zeros(3, np.float32)})
        >>> with ModelWriter(spec, tmp_path) as writer:
        ...     chunk = writer.chunk(0, 0, 256)
        ...     chunk[:] = 7
        ...     writer.put(0, 0, chunk)
        ...     stored = writer.commit()
        >>> stored.arrays()["w"].tolist()
        [7.0, 7.0, 7.0]
    """

    def __init__(
        self,
        spec: ModelSpec,
        directory: str | os.PathLike[str],
        name: str = "model",
        *,
        shard_bytes: int = SHARD_BYTES,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(plan_shards(spec, shard_bytes, metadata), AtomicReplace(Path(directory), name))


class RangeSet:
    """A set of elements as sorted ranges. Ranges that touch are merged, so writes in order need one range.

    >>> ranges = RangeSet()
    >>> ranges.add(0, 5), ranges.add(8, 9), ranges.first_missing(9)
    (None, None, 5)
    >>> ranges.add(4, 8), ranges.first_missing(9)
    (None, None)
    """

    def __init__(self) -> None:
        self._firsts: list[int] = []
        self._stops: list[int] = []

    def add(self, first: int, stop: int) -> None:
        """Add elements `first` to `stop`."""
        # The ranges that overlap or touch the new one are those from `left` to before `right`.
        left, right = bisect_left(self._stops, first), bisect_right(self._firsts, stop)
        if left < right:
            first, stop = min(first, self._firsts[left]), max(stop, self._stops[right - 1])
        self._firsts[left:right], self._stops[left:right] = [first], [stop]

    def first_missing(self, elements: int) -> int | None:
        """Return the first of `elements` elements that is not in the set; None if all are."""
        if not elements:
            return None
        if not self._firsts or self._firsts[0] > 0:
            return 0
        return self._stops[0] if self._stops[0] < elements else None


class TemporaryModels:
    """Creates models in files below a directory. A model's files are removed when nobody refers to it any more.

    `atomic_replace.publish` gives a model's files a lasting name, without a copy.

    Args:
        directory: The directory. It is created when needed; its earlier content is removed.
        before_create: Called before a model is created, to release the disk space that was reserved for it.
        metadata: The metadata in the header of each file. Default: None, no metadata.
    """

    def __init__(
        self,
        directory: Path,
        before_create: Callable[[], None] = lambda: None,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        self._directory, self._before_create, self._metadata = directory, before_create, metadata
        self._numbers = count(1)
        shutil.rmtree(directory, ignore_errors=True)  # left by a server that was killed
        self.close = weakref.finalize(self, shutil.rmtree, directory, ignore_errors=True)
        """Remove the directory. Models that are still referenced stay readable: their files are open."""

    def __call__(self, spec: ModelSpec) -> "TemporaryWriter":
        """Return a writer of a new model."""
        self._before_create()
        return TemporaryWriter(spec, self._directory / str(next(self._numbers)), self._metadata)


class TemporaryWriter(ShardWriter):
    """Writes one temporary model. Without fsync: a temporary model need not survive a power failure."""

    def __init__(self, spec: ModelSpec, directory: Path, metadata: Mapping[str, str] | None = None) -> None:
        super().__init__(plan_shards(spec, metadata=metadata), _TemporaryDestination(directory))
        self._directory = directory

    def commit(self) -> StoredModel:
        """Return the complete model. Its files are removed with its last reference."""
        stored = super().commit()
        weakref.finalize(stored, shutil.rmtree, self._directory, ignore_errors=True)
        return stored


class _TemporaryDestination:
    """A directory of one temporary model. Only this process opens its files, so commit renames nothing."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        directory.mkdir(parents=True)

    def create(self, number: int) -> OpenFile:
        return OpenFile(self._path(number), os.O_RDWR | os.O_CREAT | os.O_EXCL)

    def discard(self, count: int) -> None:  # noqa: ARG002 - all files are in the directory
        shutil.rmtree(self._directory, ignore_errors=True)

    def commit(self, shards: ShardLayout, files: Sequence[OpenFile]) -> tuple[Path, ...]:  # noqa: ARG002 - they stay in place
        return tuple(self._path(number) for number in range(len(files)))

    def _path(self, number: int) -> Path:
        return self._directory / f"{number}.safetensors"
