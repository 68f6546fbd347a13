"""Payloads that nobody holds: a source that repeats a pattern, and a sink that drops what it is given."""

import threading
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
from flcore_transport import MAX_PIECE_BYTES, Buffer, PieceRange

import flcore
from flcore_bench.inside import layout_of

PATTERN_BYTES = 8 << 20
PHASE_BYTES = 4_096
"""How far the patterns of two clients lie apart, so that they differ."""

_DRAWING = threading.Lock()


class Tiled:
    """A model of `spec`: one pattern over and over, which each `number` begins elsewhere. Gaps are zero, as they must.

    The values are finite and small. A piece is a view of the pattern, so the one copy is the one into the piece.
    """

    def __init__(self, spec: flcore.ModelSpec, number: int = 0) -> None:
        self.layout = layout_of(spec)
        self._spec = spec
        self._phase = number * PHASE_BYTES

    def read(self, piece: PieceRange) -> list[Buffer]:
        """Return the bytes of a range: views of the pattern for tensors, zeros for the gaps between them."""
        itemsize = np.dtype(piece.dtype).itemsize
        values = pattern(piece.dtype)
        buffers: list[Buffer] = []
        position, stop = piece.first, piece.first + piece.count
        for span in self._spec.segments[piece.segment].overlapping(piece.first, stop):
            begin, end = max(span.start, position), min(span.stop, stop)
            if begin > position:
                buffers.append(bytes((begin - position) * itemsize))
            offset = (self._phase + begin * itemsize) % PATTERN_BYTES
            buffers.append(values[offset : offset + (end - begin) * itemsize].data)
            position = end
        if stop > position:
            buffers.append(bytes((stop - position) * itemsize))
        return buffers


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
