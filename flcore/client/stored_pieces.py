"""A payload in a file: its pieces one after the other, with the bytes and checksums that they have on the wire."""

import os
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import Self

from flcore_layout import DTYPES, Layout, SegmentRange
from flcore_transport import Outbox, PayloadSource, PieceError, ProtocolMismatch
from flcore_transport.piece_format import HEADER_BYTES, PieceRanges, arrow_message_bytes, decode_piece, piece_elements

from flcore.errors import CorruptUpdate, SpecError
from flcore.model.open_file import OpenFile


class StoredPieces:
    """The source of a payload in a file. It reads one piece at a time, and checks it.

    Attributes:
        layout: The layout of the payload.
    """

    def __init__(self, file: OpenFile, layout: Layout) -> None:
        self.layout = layout
        self._file, self._ranges = file, PieceRanges(layout)
        sizes = (HEADER_BYTES + arrow_message_bytes(each.dtype, each.count) for each in self._ranges)
        self._offsets = [0, *accumulate(sizes)]
        self._first_pieces: dict[tuple[int, int], int] = {}
        for index, each in enumerate(self._ranges):
            self._first_pieces.setdefault((each.part, each.segment), index)

    @classmethod
    def write(cls, path: Path, source: PayloadSource) -> Self:
        """Write a payload to a new file, and flush it to disk. Memory holds one piece at a time.

        Raises:
            OSError: The disk does not take it.
        """
        outbox = Outbox(source)
        stored = cls(OpenFile(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600), source.layout)
        for index, offset in enumerate(stored._offsets[:-1]):
            stored._file.write_at([memoryview(outbox.piece(index))], offset)
        os.fsync(stored._file.descriptor)
        return stored

    @classmethod
    def open(cls, path: Path, layout: Layout) -> Self:
        """Open a file that `write` has written, and check every piece of it.

        Raises:
            CorruptUpdate: The file cannot be read, or differs from the one that was written.
        """
        try:
            file = OpenFile(path, os.O_RDONLY | os.O_NOFOLLOW)
            _require_fits(layout, file)  # before offsets are computed for as many pieces as the layout has
            stored = cls(file, layout)
        except (OSError, SpecError, PieceError) as error:
            raise CorruptUpdate(f"{path}: cannot be read: {error}") from error
        if stored._file.size != stored._offsets[-1]:
            raise CorruptUpdate(f"{path}: expected {stored._offsets[-1]} bytes, got {stored._file.size}")
        for index in range(len(stored._ranges)):
            stored._body(index)
        return stored

    def renamed(self, path: Path) -> None:
        """Take note of the file's new name, for the messages of errors."""
        self._file.path = path

    def read(self, range_: SegmentRange) -> Sequence[memoryview]:
        """Return the bytes of whole pieces of a segment. Reads them from the file.

        Raises:
            CorruptUpdate: The file cannot be read, or a piece differs from the one that was written.
        """
        first_piece = self._first_pieces[range_.part, range_.segment]
        size = piece_elements(self._ranges[first_piece].dtype)
        pieces = range(first_piece + range_.first // size, first_piece + -(-(range_.first + range_.count) // size))
        covered = sum(self._ranges[index].count for index in pieces)
        if range_.first % size or covered != range_.count:
            raise ValueError(f"expected whole pieces of {size} elements, got {range_}")
        return [self._body(index) for index in pieces]

    def _body(self, index: int) -> memoryview:
        """Return the body of a piece after its checksum was compared."""
        begin, end = self._offsets[index], self._offsets[index + 1]
        expected = self._ranges[index]
        try:
            piece = os.pread(self._file.descriptor, end - begin, begin)
            return decode_piece(piece, expected.part, expected.segment, expected.first, expected.dtype, expected.count)
        except (OSError, PieceError, ProtocolMismatch) as error:
            raise CorruptUpdate(f"{self._file.path}: piece {index} cannot be read back: {error}") from error


def _require_fits(layout: Layout, file: OpenFile) -> None:
    """Raise `CorruptUpdate` if a file is too small for the elements of a layout."""
    segments = [segment for part in layout.parts for segment in part.segments]
    needed = sum(segment.elements * DTYPES[segment.dtype].itemsize for segment in segments if segment.dtype in DTYPES)
    if needed > (size := file.size):
        raise CorruptUpdate(f"{file.path}: expected at least {needed} bytes, got {size}")
