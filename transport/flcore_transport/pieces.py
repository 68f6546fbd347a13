"""A payload as a sequence of pieces, in both directions, without a socket.

The layout alone determines the elements of piece *i* (`PieceRanges`), so both ends know each piece before it is sent.
`Outbox` encodes pieces. `Inbox` accepts them in order and counts them, so an interrupted payload resumes at the first
missing piece.
"""

import threading
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from typing import Protocol

from flcore_layout import Layout, SegmentRange

from flcore_transport.errors import PayloadIncomplete, PieceError, ProtocolMismatch
from flcore_transport.framing import Buffer, decode_piece, encode_piece
from flcore_transport.messages import wire_dtype

PIECE_BODY_BYTES = 2 << 20
"""Bytes of elements in a full piece, without the scales of a quantized dtype."""


def piece_elements(dtype: str) -> int:
    """Return the number of elements of `dtype` in a full piece.

    >>> piece_elements("float32")
    524288
    """
    return PIECE_BODY_BYTES // wire_dtype(dtype).itemsize


class PieceRanges(Sequence[SegmentRange]):
    """The ranges of all pieces of a layout. Every piece of a segment but the last is full.

    >>> from flcore_layout import Layout, PayloadPart, Segment
    >>> ranges = PieceRanges(Layout((PayloadPart("model", (Segment("float64", 262_400),)),)))
    >>> [(range_.first, range_.count) for range_ in ranges]
    [(0, 262144), (262144, 256)]
    """

    def __init__(self, layout: Layout) -> None:
        self._segments = [
            (part_index, segment_index, segment)
            for part_index, part in enumerate(layout.parts)
            for segment_index, segment in enumerate(part.segments)
        ]
        for _, _, segment in self._segments:
            wire_dtype(segment.dtype, segment.elements)  # raises for an invalid segment
        counts = (-(-segment.elements // piece_elements(segment.dtype)) for _, _, segment in self._segments)
        self._stops = list(accumulate(counts))

    def __len__(self) -> int:
        return self._stops[-1] if self._stops else 0

    def __getitem__(self, index: int) -> SegmentRange:  # type: ignore[override]
        if not 0 <= index < len(self):
            raise IndexError(f"piece {index} of {len(self)}")
        position = bisect_right(self._stops, index)
        part, number, segment = self._segments[position]
        size = piece_elements(segment.dtype)
        first = (index - (self._stops[position - 1] if position else 0)) * size
        return SegmentRange(number, segment.dtype, first, min(size, segment.elements - first), part)


class PayloadSource(Protocol):
    """The elements of an outgoing payload."""

    @property
    def layout(self) -> Layout:
        """The layout of the payload."""
        ...

    def read(self, range_: SegmentRange) -> Sequence[Buffer]:
        """Return the bytes of a range as buffers to be joined, zero-copy if possible.

        A quantized range begins with its scales, as `join_body` returns it.
        """
        ...


class PayloadSink(Protocol):
    """The destination of an incoming payload's elements."""

    def write(self, range_: SegmentRange, body: memoryview) -> None:
        """Take the bytes of a range. Ranges come in order, each once. The sink may keep `body`: it is not reused.

        `split_body` separates the elements of a quantized range from their scales.
        """
        ...


class PieceCache:
    """The last few encoded pieces of one payload, shared by the clients that download it at the same time."""

    def __init__(self, count: int = 8) -> None:
        self._count = count
        self._pieces: dict[int, bytes] = {}
        self._lock = threading.Lock()

    def get(self, index: int) -> bytes | None:
        """Return a cached piece, or None."""
        return self._pieces.get(index)

    def put(self, index: int, piece: bytes) -> None:
        """Cache a piece, and evict the oldest if there are too many."""
        with self._lock:
            self._pieces[index] = piece
            if len(self._pieces) > self._count:
                del self._pieces[next(iter(self._pieces))]

    def clear(self) -> None:
        """Free all cached pieces."""
        with self._lock:
            self._pieces.clear()


class Outbox:
    """The sending side of one payload. Outboxes of the same payload can share a `cache`."""

    def __init__(self, source: PayloadSource, cache: PieceCache | None = None) -> None:
        self.piece_ranges = PieceRanges(source.layout)
        self._source = source
        self._cache = cache

    def on_queued(self) -> None:
        """Called when the transfer queues for a window, which does not count as a stall of its client."""

    def cached_piece(self, index: int) -> bytes | None:
        """Return piece `index` if it is cached, else None."""
        return None if self._cache is None else self._cache.get(index)

    def piece(self, index: int) -> bytes:
        """Return piece `index`, encoded."""
        encoded = None if self._cache is None else self._cache.get(index)
        if encoded is None:
            range_ = self.piece_ranges[index]
            body = self._source.read(range_)
            encoded = encode_piece(range_.part, range_.segment, range_.first, range_.dtype, range_.count, body)
            if self._cache is not None:
                self._cache.put(index, encoded)
        return encoded


class Inbox:
    """The receiving side of one payload: checks each piece and passes its elements to the sink."""

    def __init__(self, layout: Layout, sink: PayloadSink) -> None:
        self.piece_ranges = PieceRanges(layout)
        self.received = 0
        self._sink = sink

    @property
    def is_complete(self) -> bool:
        """Whether all pieces have been received."""
        return self.received == len(self.piece_ranges)

    def accept(self, piece: bytes) -> None:
        """Take the next piece. An invalid one raises `PieceError` or `ProtocolMismatch` and is not counted."""
        if self.is_complete:
            raise PieceError(f"piece {self.received} came, but the payload has only {len(self.piece_ranges)}")
        expected = self.piece_ranges[self.received]
        try:
            body = decode_piece(piece, expected.part, expected.segment, expected.first, expected.dtype, expected.count)
        except (PieceError, ProtocolMismatch) as error:
            raise type(error)(f"piece {self.received} of {len(self.piece_ranges)}: {error}") from error
        self._sink.write(expected, body)
        self.received += 1

    def finish(self) -> None:
        """Raise `PayloadIncomplete` unless all pieces have been received."""
        if not self.is_complete:
            raise PayloadIncomplete(f"{self.received} of {len(self.piece_ranges)} pieces came")
