"""Payloads that nobody holds: a source that repeats a pattern, and a sink that drops what it is given."""

import threading
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
from flcore_transport import MAX_PIECE_BYTES, PIECE_BODY_BYTES, WIRE_DTYPES, Buffer, PieceRange, join_body

from flcore_bench.inside import WireFormat

PATTERN_BYTES = 8 << 20
PHASE_BYTES = 4_096
"""How far the patterns of two clients lie apart, so that they differ."""

SCALES = np.full(PIECE_BODY_BYTES // 32, 2.0**-10, np.float32).view(np.uint8)
"""Of int8 codes in blocks, for any piece."""

_DRAWING = threading.Lock()


class Tiled:
    """A model in a form: one pattern over and over, which each `number` begins elsewhere. Gaps are zero, as they must.

    The values are finite and small. A piece is a view of the pattern, so the one copy is the one into the piece.
    """

    def __init__(self, wire_format: WireFormat, number: int = 0) -> None:
        self.layout = wire_format.layout
        self._spec = wire_format.spec
        self._phase = number * PHASE_BYTES

    def read(self, piece: PieceRange) -> Sequence[Buffer]:
        """Return the bytes of a range: views of the pattern for tensors, zeros for the gaps between them."""
        row = WIRE_DTYPES[piece.dtype]
        values = pattern("int8" if row.block else piece.dtype)
        buffers: list[Buffer] = []
        position, stop = piece.first, piece.first + piece.count
        for span in self._spec.segments[piece.segment].overlapping(piece.first, stop):
            begin, end = max(span.start, position), min(span.stop, stop)
            if begin > position:
                buffers.append(bytes((begin - position) * row.itemsize))
            offset = (self._phase + begin * row.itemsize) % PATTERN_BYTES
            buffers.append(values[offset : offset + (end - begin) * row.itemsize].data)
            position = end
        if stop > position:
            buffers.append(bytes((stop - position) * row.itemsize))
        scales = [SCALES[: row.scale_bytes(piece.count)].data] if row.block else []
        return join_body(piece.dtype, piece.count, buffers, scales)


class Dropped:
    """A sink that keeps nothing: the pieces are checked, and let go."""

    def write(self, piece: PieceRange, body: memoryview) -> None:
        """Let a piece go."""


def pattern(dtype: str) -> npt.NDArray[Any]:
    """Return the bytes that stand for a model's values: the pattern, and a piece more, so any piece is one view."""
    with _DRAWING:  # hundreds of clients begin at once, and one pattern is enough
        return _drawn(dtype)


@cache
def _drawn(dtype: str) -> npt.NDArray[Any]:
    kind = np.dtype(dtype)
    count = PATTERN_BYTES // kind.itemsize
    drawn = np.random.Generator(np.random.Philox(7)).normal(0, 0.05, count)
    values = (drawn * 1_000 if kind.kind in "iu" else drawn).astype(kind)
    whole = values.view(np.uint8)
    return np.concatenate([whole, whole[:MAX_PIECE_BYTES]])
