"""Staging of updates until they are folded: in memory within the quota, on disk beyond it."""

import json
import os
import shutil
import tempfile
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path

import numpy as np
from flcore_layout import SegmentRange
from flcore_transport import Buffer
from flcore_transport.piece_format import arrow_message_bytes, arrow_metadata, arrow_schema_message, piece_elements

from flcore.aggregation.memory_quota import MemoryQuota
from flcore.errors import StagingError
from flcore.model.wire_format import WireFormat

DESCRIPTION = "update.json"
"""Describes an update in its directory, for `flcore.open_update`. It is there once the update is whole."""

DESCRIPTION_FORMAT = 1
_NOT_WHOLE = ".update.json"


def segment_path(directory: Path, segment: int) -> Path:
    """Return the file of one segment of a staged update."""
    return directory / f"segment-{segment}.arrows"


def chunk_offset(piece: SegmentRange) -> int:
    """Return where in the file of its segment a chunk's message begins: behind the schema and full chunks."""
    size = piece_elements(piece.dtype)
    return len(arrow_schema_message(piece.dtype)) + piece.first // size * arrow_message_bytes(piece.dtype, size)


class Staging:
    """The memory quota that all staged updates of a server share, and the directory for updates beyond it.

    `memory_bytes` None sets no bound. `directory` is made when it is first needed, and removed with this object;
    without one it is made among the system's temporary files. Methods may be called from any thread.
    """

    def __init__(self, memory_bytes: int | None = None, directory: Path | None = None) -> None:
        self.quota = MemoryQuota(memory_bytes)
        self._directory = directory
        self._lock = threading.Lock()
        self._numbers = count(1)
        self._made: Path | None = None
        self._remove: weakref.finalize[..., Staging] | None = None

    def create_directory(self) -> Path:
        """Make a new directory for one update."""
        with self._lock:
            if self._made is None:
                if self._directory is None:
                    self._made = Path(tempfile.mkdtemp(prefix="flcore-staging-"))
                else:
                    self._made = self._directory
                    self._made.mkdir(parents=True)
                self._remove = weakref.finalize(self, shutil.rmtree, self._made, ignore_errors=True)
            folder = self._made / str(next(self._numbers))
        folder.mkdir()
        return folder

    def close(self) -> None:
        """Remove the directory, with all that is in it."""
        if self._remove is not None:
            self._remove()


class DiskStore:
    """The chunks of one update, in the files of a directory, which goes with them.

    A chunk is the body of a piece, byte by byte as it stands on the wire. Every segment is an Arrow IPC stream of its
    own, one record batch a chunk, so that any Arrow implementation reads it. `update.json` describes the update; it has
    another name until `seal`. Files are opened for each chunk: clients are many.

    Raises `StagingError`, which names the client, for what the disk does not do.
    """

    def __init__(self, staging: Staging, wire_format: WireFormat, client: str, weight: float) -> None:
        self._client = client
        last = {piece.segment: piece for piece in wire_format.pieces}  # the last one of each segment
        with self._attribute_errors():
            self._directory = staging.create_directory()
            for number, dtype in enumerate(wire_format.dtypes):
                path = segment_path(self._directory, number)
                path.write_bytes(arrow_schema_message(dtype))
                if piece := last.get(number):  # zeros up to its end, which take no space: to Arrow, the end of a stream
                    os.truncate(path, chunk_offset(piece) + arrow_message_bytes(piece.dtype, piece.count))
            own = json.dumps({"format": DESCRIPTION_FORMAT, "client": client, "weight": weight})
            text = f"{own[:-1]}, {wire_format.description}}}\n"  # updates share the description, which may be long
            (self._directory / _NOT_WHOLE).write_text(text, encoding="utf-8")

    def seal(self) -> None:
        """Say that the update is whole: give its description the name under which it is looked for."""
        # Only readers miss it. An update whose directory has been removed is told of when it is folded.
        with suppress(OSError):
            (self._directory / _NOT_WHOLE).replace(self._directory / DESCRIPTION)

    def append(self, piece: SegmentRange, body: Buffer) -> None:
        """Write a chunk and what stands before it in its stream."""
        metadata = arrow_metadata(piece.dtype, piece.count)
        self._write(piece, -len(metadata), [metadata, body])

    def write_bytes(self, piece: SegmentRange, offset: int, data: Buffer) -> None:
        """Write bytes into a chunk, from byte `offset` of it on; what is never written is zero."""
        if offset == 0:
            self._write(piece, -len(metadata := arrow_metadata(piece.dtype, piece.count)), [metadata])
        self._write(piece, offset, [data])

    def read_bytes(self, piece: SegmentRange, begin: int, end: int) -> Buffer:
        """Read some bytes of a chunk into a new buffer."""
        body = np.empty(end - begin, np.uint8)
        with self._open(piece, os.O_RDONLY) as file:
            read = os.preadv(file, [body.data], self._offset(piece) + begin)
            if read != body.nbytes:
                raise OSError(f"{self._path(piece)}: {read} of {body.nbytes} bytes read: the file was cut")
        return body.data

    def discard(self) -> None:
        """Remove the files."""
        shutil.rmtree(self._directory, ignore_errors=True)

    def _write(self, piece: SegmentRange, offset: int, data: list[Buffer]) -> None:
        expected = sum(memoryview(buffer).nbytes for buffer in data)
        with self._open(piece, os.O_WRONLY) as file:
            written = os.pwritev(file, data, self._offset(piece) + offset)
            if written != expected:
                raise OSError(f"{self._path(piece)}: {written} of {expected} bytes written: the disk is full")

    @contextmanager
    def _open(self, piece: SegmentRange, how: int) -> Iterator[int]:
        with self._attribute_errors():
            file = os.open(self._path(piece), how | os.O_CLOEXEC)
            try:
                yield file
            finally:
                os.close(file)

    @contextmanager
    def _attribute_errors(self) -> Iterator[None]:
        """Have an error of the disk name the client."""
        try:
            yield
        except OSError as error:
            raise StagingError(f"the disk does not keep it: {error}", client=self._client) from error

    def _path(self, piece: SegmentRange) -> Path:
        return segment_path(self._directory, piece.segment)

    def _offset(self, piece: SegmentRange) -> int:
        """Return where the body of a chunk begins."""
        return chunk_offset(piece) + len(arrow_metadata(piece.dtype, piece.count))
