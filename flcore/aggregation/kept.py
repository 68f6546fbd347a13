"""What keeps the chunks of one staged update: memory, or files. Both have the same methods.

A chunk is the body of a piece, byte by byte as it stands on the wire. On disk every segment is an Arrow IPC stream of
its own, one record batch a chunk, so that any Arrow implementation reads it.
"""

import os
import shutil
from pathlib import Path
from typing import Protocol

import numpy as np
from flcore_transport import (
    Buffer,
    Layout,
    PiecePlan,
    PieceRange,
    body_bytes,
    message_bytes,
    message_metadata,
    piece_elements,
    schema_message,
)


class Kept(Protocol):
    """Chunks, known by their pieces."""

    def adopt(self, piece: PieceRange, body: Buffer) -> None:
        """Keep a whole chunk."""
        ...

    def write(self, piece: PieceRange, offset: int, data: Buffer) -> None:
        """Copy bytes into a chunk, from byte `offset` of it on; what is never written is zero."""
        ...

    def read(self, piece: PieceRange, begin: int, end: int) -> Buffer:
        """Return some bytes of a chunk."""
        ...

    def release(self, piece: PieceRange) -> bool:
        """Let a chunk go, if that frees memory; say whether it does."""
        ...

    def drop(self) -> None:
        """Let everything go."""
        ...


class InMemory:
    """Chunks in memory: those that were received are kept as they came, without a copy."""

    def __init__(self) -> None:
        self._bodies: dict[PieceRange, Buffer] = {}

    def holds(self, piece: PieceRange) -> bool:
        """Whether some of a chunk is here."""
        return piece in self._bodies

    def adopt(self, piece: PieceRange, body: Buffer) -> None:
        """Keep a buffer."""
        self._bodies[piece] = body

    def write(self, piece: PieceRange, offset: int, data: Buffer) -> None:
        """Copy bytes into a chunk."""
        if not self.holds(piece):
            self._bodies[piece] = np.zeros(body_bytes(piece.dtype, piece.count), np.uint8).data
        memoryview(self._bodies[piece])[offset : offset + len(data)] = data

    def read(self, piece: PieceRange, begin: int, end: int) -> Buffer:
        """Return some bytes of a chunk, without a copy."""
        return memoryview(self._bodies[piece])[begin:end]

    def release(self, piece: PieceRange) -> bool:
        """Let a chunk go."""
        return self._bodies.pop(piece, None) is not None

    def next(self) -> PieceRange | None:
        """Return a chunk that is here, if there is one."""
        return next(iter(self._bodies), None)

    def body(self, piece: PieceRange) -> Buffer:
        """Return a chunk, which stays."""
        return self._bodies[piece]

    def drop(self) -> None:
        """Let everything go."""
        self._bodies = {}


class OnDisk:
    """Chunks in the files of a directory, which goes with them. Files are opened for each chunk: clients are many."""

    def __init__(self, directory: Path, layout: Layout) -> None:
        self._directory = directory
        self._schemas = [schema_message(segment.dtype) for part in layout.parts for segment in part.segments]
        pieces = {piece.segment: piece for piece in PiecePlan(layout)}  # the last one of each segment
        for number, schema in enumerate(self._schemas):
            path = directory / f"segment-{number}.arrows"
            path.write_bytes(schema)
            if number in pieces:  # zeros up to its end, which take no space: to Arrow, the end of a stream
                last = pieces[number]
                os.truncate(path, self._offset(last) + body_bytes(last.dtype, last.count))

    def adopt(self, piece: PieceRange, body: Buffer) -> None:
        """Write a chunk and what stands before it in its stream."""
        metadata = message_metadata(piece.dtype, piece.count)
        self._write(piece, -len(metadata), [metadata, body])

    def write(self, piece: PieceRange, offset: int, data: Buffer) -> None:
        """Write bytes into a chunk."""
        if offset == 0:
            self._write(piece, -len(metadata := message_metadata(piece.dtype, piece.count)), [metadata])
        self._write(piece, offset, [data])

    def read(self, piece: PieceRange, begin: int, end: int) -> Buffer:
        """Read some bytes of a chunk into a new buffer."""
        body = np.empty(end - begin, np.uint8)
        file = os.open(self._path(piece), os.O_RDONLY | os.O_CLOEXEC)
        try:
            read = os.preadv(file, [body.data], self._offset(piece) + begin)
        finally:
            os.close(file)
        if read != body.nbytes:
            raise OSError(f"{self._path(piece)}: {read} of {body.nbytes} bytes read: the file was cut")
        return body.data

    def release(self, piece: PieceRange) -> bool:  # noqa: ARG002 - as `Kept` has it
        """Keep the chunk: files take no memory."""
        return False

    def drop(self) -> None:
        """Remove the files."""
        shutil.rmtree(self._directory, ignore_errors=True)

    def _write(self, piece: PieceRange, offset: int, data: list[Buffer]) -> None:
        file = os.open(self._path(piece), os.O_WRONLY | os.O_CLOEXEC)
        try:
            expected = sum(memoryview(buffer).nbytes for buffer in data)
            written = os.pwritev(file, data, self._offset(piece) + offset)
            if written != expected:
                raise OSError(f"{self._path(piece)}: {written} of {expected} bytes written: the disk is full")
        finally:
            os.close(file)

    def _path(self, piece: PieceRange) -> Path:
        return self._directory / f"segment-{piece.segment}.arrows"

    def _offset(self, piece: PieceRange) -> int:
        size = piece_elements(piece.dtype)
        before = piece.first // size * message_bytes(piece.dtype, size)
        return len(self._schemas[piece.segment]) + before + len(message_metadata(piece.dtype, piece.count))
