"""A payload as a sequence of pieces, in both directions, with no socket in sight.

Which elements piece *i* carries follows from the layout alone (`PiecePlan`), so the two ends agree on it beforehand and
nobody can send pieces of another shape. `Outbox` makes pieces, `Inbox` takes them, in order only, and knows at any time
from which piece on an interrupted payload goes on.
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
"""Bytes of elements in a full piece; the scales of quantized ones come on top."""


def piece_elements(dtype: str) -> int:
    """Return how many elements of `dtype` a full piece carries.

    >>> piece_elements("float32")
    524288
    """
    return PIECE_BODY_BYTES // wire_dtype(dtype).itemsize


class PiecePlan(Sequence[SegmentRange]):
    """The ranges of all pieces of a layout. Every piece of a segment but the last is full.

    >>> from flcore_layout import Layout, PayloadPart, Segment
    >>> plan = PiecePlan(Layout((PayloadPart("model", (Segment("float64", 262_400),)),)))
    >>> [(piece.first, piece.count) for piece in plan]
    [(0, 262144), (262144, 256)]
    """

    def __init__(self, layout: Layout) -> None:
        self._segments = [
            (part_index, segment_index, segment)
            for part_index, part in enumerate(layout.parts)
            for segment_index, segment in enumerate(part.segments)
        ]
        for _, _, segment in self._segments:
            wire_dtype(segment.dtype, segment.elements)  # refuses what no segment is
        counts = (-(-segment.elements // piece_elements(segment.dtype)) for _, _, segment in self._segments)
        self._stops = list(accumulate(counts))

    def __len__(self) -> int:
        return self._stops[-1] if self._stops else 0

    def __getitem__(self, index: int) -> SegmentRange:  # type: ignore[override]
        if not 0 <= index < len(self):
            raise IndexError(f"piece {index} of {len(self)}")
        row = bisect_right(self._stops, index)
        part, number, segment = self._segments[row]
        size = piece_elements(segment.dtype)
        first = (index - (self._stops[row - 1] if row else 0)) * size
        return SegmentRange(number, segment.dtype, first, min(size, segment.elements - first), part)


class PayloadSource(Protocol):
    """Where an outgoing payload's elements come from."""

    @property
    def layout(self) -> Layout:
        """What the payload consists of."""
        ...

    def read(self, piece: SegmentRange) -> Sequence[Buffer]:
        """Return the bytes of a range, as buffers to be joined; views, where that needs no copy.

        Those of a quantized range come as `join_body` orders them: the scales first.
        """
        ...


class PayloadSink(Protocol):
    """Where an incoming payload's elements go."""

    def write(self, piece: SegmentRange, body: memoryview) -> None:
        """Take the bytes of a range. They come once each, in order; `body` may be kept, it is never reused.

        `split_body` tells the elements of a quantized range from their scales.
        """
        ...


class PieceCache:
    """The last few pieces that were made of one payload: those who read it side by side get the same bytes."""

    def __init__(self, count: int = 8) -> None:
        self._count = count
        self._pieces: dict[int, bytes] = {}
        self._lock = threading.Lock()

    def get(self, index: int) -> bytes | None:
        """Return a piece that is still here."""
        return self._pieces.get(index)

    def put(self, index: int, piece: bytes) -> None:
        """Keep a piece, and let go of the oldest."""
        with self._lock:
            self._pieces[index] = piece
            if len(self._pieces) > self._count:
                del self._pieces[next(iter(self._pieces))]

    def clear(self) -> None:
        """Let go of all."""
        with self._lock:
            self._pieces.clear()


class Outbox:
    """The sending side of one payload; `cache` is that of all outboxes of the same payload."""

    def __init__(self, source: PayloadSource, cache: PieceCache | None = None) -> None:
        self.plan = PiecePlan(source.layout)
        self._source = source
        self._cache = cache

    def on_queued(self) -> None:
        """The call that reads waits for its turn: it gets nothing, and not because its client is slow."""

    def cached_piece(self, index: int) -> bytes | None:
        """Return piece `index` if that takes no work."""
        return None if self._cache is None else self._cache.get(index)

    def piece(self, index: int) -> bytes:
        """Return piece `index`, ready for the wire."""
        encoded = None if self._cache is None else self._cache.get(index)
        if encoded is None:
            piece = self.plan[index]
            body = self._source.read(piece)
            encoded = encode_piece(piece.part, piece.segment, piece.first, piece.dtype, piece.count, body)
            if self._cache is not None:
                self._cache.put(index, encoded)
        return encoded


class Inbox:
    """The receiving side of one payload: checks each piece against the plan and hands its elements on."""

    def __init__(self, layout: Layout, sink: PayloadSink) -> None:
        self.plan = PiecePlan(layout)
        self.received = 0
        self._sink = sink

    @property
    def is_complete(self) -> bool:
        """Whether the last piece is in."""
        return self.received == len(self.plan)

    def accept(self, piece: bytes) -> None:
        """Take the next piece. Raises `PieceError` or `ProtocolMismatch`, and then counts it as not received."""
        if self.is_complete:
            raise PieceError(f"piece {self.received} came, but the payload has only {len(self.plan)}")
        expected = self.plan[self.received]
        try:
            body = decode_piece(piece, expected.part, expected.segment, expected.first, expected.dtype, expected.count)
        except (PieceError, ProtocolMismatch) as error:
            raise type(error)(f"piece {self.received} of {len(self.plan)}: {error}") from error
        self._sink.write(expected, body)
        self.received += 1

    def finish(self) -> None:
        """Raise `PayloadIncomplete` unless the last piece is in."""
        if not self.is_complete:
            raise PayloadIncomplete(f"{self.received} of {len(self.plan)} pieces came")
