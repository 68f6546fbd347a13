"""Staging of updates until they are folded: in memory within the quota, on disk beyond it."""

import errno
import json
import os
import shutil
import tempfile
import threading
import weakref
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import ClassVar, NoReturn

import numpy as np
from flcore_layout import SegmentRange
from flcore_transport import Buffer
from flcore_transport.piece_format import arrow_message_bytes, arrow_metadata, arrow_schema_message, piece_elements

from flcore.aggregation.memory_quota import MemoryQuota
from flcore.disk_errors import ADVICE, describe_disk_error
from flcore.errors import StagingError
from flcore.model.wire_format import WireFormat

DESCRIPTION = "update.json"
"""The file that describes an update in its directory, for `flcore.open_update`. Only complete updates have it."""

DESCRIPTION_FORMAT = 1
UNSEALED_DESCRIPTION = ".update.json"

SPILL_AFTER_S = 2.0
"""How long an update waits for memory, or stays in memory without a new chunk, before it goes to disk."""


def segment_path(directory: Path, segment: int) -> Path:
    """Return the file of one segment of a staged update."""
    return directory / f"segment-{segment}.arrows"


def chunk_offset(chunk: SegmentRange) -> int:
    """Return the offset of a chunk's Arrow message in its segment's file: after the schema and the full chunks."""
    size = piece_elements(chunk.dtype)
    return len(arrow_schema_message(chunk.dtype)) + chunk.first // size * arrow_message_bytes(chunk.dtype, size)


class Staging:
    """The memory quota that all staged updates of a server share, and the directory for updates beyond it.

    Methods may be called from any thread.

    `KeptStaging` stages updates whose files outlive the process.

    Args:
        memory_bytes: The limit of the quota. Default: None, no bound.
        directory: The directory. It is created for the first update on disk and removed with this object. Default:
            None, a new one in the system's directory of temporary files.
    """

    keeps_files: ClassVar[bool] = False
    """Whether an update in memory is also written to files."""

    def __init__(self, memory_bytes: int | None = None, directory: Path | None = None) -> None:
        self.quota = MemoryQuota(memory_bytes)
        self._directory = directory
        self._lock = threading.Lock()
        self._numbers = count(1)
        self._created: Path | None = None
        self._remove: weakref.finalize[..., Staging] | None = None

    def create_store(self, wire_format: WireFormat, client: str, weight: float, upload_key: str) -> "DiskStore":  # noqa: ARG002 - temporary files need no key
        """Create the files of a new update. Raises `StagingError`."""
        with attribute_disk_errors(client, self._directory or Path(tempfile.gettempdir())):
            directory = self.next_directory()
        store = DiskStore(directory, client)
        store.create(wire_format, weight)
        return store

    def find_store(self, client: str, upload_key: str) -> None:
        """Return None: no earlier process has left files."""

    def open_store(self, directory: str, client: str) -> NoReturn:
        """Raise `StagingError`: no earlier process has left files."""
        raise StagingError(f"the files in {directory} were temporary", client=client)

    def next_directory(self) -> Path:
        """Return the path of a new directory for one update."""
        with self._lock:
            if self._created is None:
                if self._directory is None:
                    self._created = Path(tempfile.mkdtemp(prefix="flcore-staging-"))
                else:
                    self._created = self._directory
                    self._created.mkdir(parents=True)
                self._remove = weakref.finalize(self, shutil.rmtree, self._created, ignore_errors=True)
            return self._created / str(next(self._numbers))

    def close(self) -> None:
        """Remove the directory and its content."""
        if self._remove is not None:
            self._remove()


class DiskStore:
    """The chunks of one update on disk, in a directory of its own.

    A chunk is the body of a piece, with the bytes it has on the wire. Every segment is a file: an Arrow IPC stream with
    one record batch per chunk, which any Arrow implementation reads. `update.json` describes the update; it has another
    name until `seal`. Files are opened for each access, as the clients of a round may be more than the limit of open
    files.

    Methods raise `StagingError`, which names the client, for errors of the disk.

    Args:
        directory: The directory of the update.
        client: The client's name.
    """

    def __init__(self, directory: Path, client: str) -> None:
        self._directory, self._client = directory, client

    @property
    def name(self) -> str:
        """The name of the directory."""
        return self._directory.name

    def create(self, wire_format: WireFormat, weight: float) -> None:
        """Create the directory and its files; all of them, or none."""
        try:
            with self._attribute_errors():
                self._directory.mkdir(parents=True)
                self._create_files(wire_format, weight)
        except StagingError:
            self.discard()
            raise

    def _create_files(self, wire_format: WireFormat, weight: float) -> None:
        last = {chunk.segment: chunk for chunk in wire_format.pieces}  # the last one of each segment
        for number, dtype in enumerate(wire_format.dtypes):
            path = segment_path(self._directory, number)
            path.write_bytes(arrow_schema_message(dtype))
            # The file gets its full length as a hole, which takes no space. Arrow reads the zeros of a chunk that is
            # not written yet as the end of the stream.
            if chunk := last.get(number):
                os.truncate(path, chunk_offset(chunk) + arrow_message_bytes(chunk.dtype, chunk.count))
        head = json.dumps({"format": DESCRIPTION_FORMAT, "client": self._client, "weight": weight})
        # The tensors' description may be megabytes long. It is encoded once for all updates, and inserted as text.
        text = f"{head[:-1]}, {wire_format.description}}}\n"
        (self._directory / UNSEALED_DESCRIPTION).write_text(text, encoding="utf-8")

    def seal(self) -> None:
        """Mark the update as complete: rename its description to `update.json`."""
        # An error is ignored: only `open_update` needs the name, and folding reports a directory that was removed.
        with suppress(OSError):
            self._rename_description()

    def _rename_description(self) -> None:
        (self._directory / UNSEALED_DESCRIPTION).replace(self._directory / DESCRIPTION)

    def append(self, chunk: SegmentRange, body: Buffer) -> None:
        """Write a chunk and the Arrow metadata before it, in one call to the system."""
        metadata = arrow_metadata(chunk.dtype, chunk.count)
        self._write(chunk, -len(metadata), [metadata, body])

    def write_bytes(self, chunk: SegmentRange, offset: int, data: Buffer) -> None:
        """Write bytes into a chunk, from its byte `offset` on. Bytes that are never written are zero."""
        if offset == 0:
            self._write(chunk, -len(metadata := arrow_metadata(chunk.dtype, chunk.count)), [metadata])
        self._write(chunk, offset, [data])

    def read_bytes(self, chunk: SegmentRange, begin: int, end: int) -> Buffer:
        """Read bytes of a chunk into a new buffer."""
        body = np.empty(end - begin, np.uint8)
        with self._open(chunk, os.O_RDONLY) as file:
            read = os.preadv(file, [body.data], self._offset(chunk) + begin)
            if read != body.nbytes:
                raise OSError(f"{self._path(chunk)}: {read} of {body.nbytes} bytes read: the file was cut")
        return body.data

    def release(self) -> None:
        """Let `discard` remove the files: it does so in any case."""

    def discard(self) -> None:
        """Remove the files."""
        shutil.rmtree(self._directory, ignore_errors=True)

    def _write(self, chunk: SegmentRange, offset: int, data: list[Buffer]) -> None:
        expected = sum(memoryview(buffer).nbytes for buffer in data)
        with self._open(chunk, os.O_WRONLY) as file:
            position = self._offset(chunk) + offset
            written = os.pwritev(file, data, position)
            if written != expected:
                short = f"{written} of {expected} bytes written: the disk is full"
                raise OSError(f"{self._path(chunk)}: {short}; {ADVICE[errno.ENOSPC]}")
            self._after_write(file, position, written)

    @contextmanager
    def _open(self, chunk: SegmentRange, flags: int) -> Iterator[int]:
        path = self._path(chunk)
        with attribute_disk_errors(self._client, path):
            file = os.open(path, flags | os.O_CLOEXEC)
            try:
                yield file
            finally:
                os.close(file)

    def _attribute_errors(self) -> AbstractContextManager[None]:
        return attribute_disk_errors(self._client, self._directory)

    def _after_write(self, file: int, offset: int, nbytes: int) -> None:
        """Called with the open file after bytes were written to it."""

    def _path(self, chunk: SegmentRange) -> Path:
        return segment_path(self._directory, chunk.segment)

    def _offset(self, chunk: SegmentRange) -> int:
        """Return the offset of a chunk's body in its segment's file."""
        return chunk_offset(chunk) + len(arrow_metadata(chunk.dtype, chunk.count))


@contextmanager
def attribute_disk_errors(client: str, place: Path) -> Iterator[None]:
    """Turn an error of the disk into a `StagingError` that names the client, and the file or else `place`."""
    try:
        yield
    except OSError as error:
        raise StagingError(f"the disk does not keep it: {describe_disk_error(error, place)}", client=client) from error
