"""Payloads without storage: a source that repeats a pattern, and a sink that discards its input."""

import threading
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
from flcore_layout import DTYPES, SegmentRange
from flcore_transport import Buffer
from flcore_transport.piece_format import MAX_PIECE_BYTES, PIECE_BODY_BYTES, join_body

from flcore_bench.internals import WireFormat

PATTERN_BYTES = 8 << 20
PHASE_BYTES = 4_096
"""The offset between the patterns of two clients, so that their models differ."""

SCALES = np.full(PIECE_BODY_BYTES // 32, 2.0**-10, np.float32).view(np.uint8)
"""Scales for the int8 codes of any piece."""

_PATTERN_LOCK = threading.Lock()


class SyntheticPayload:
    """A model in a wire format whose values repeat one pattern of small finite numbers.

    Reading is zero-copy: a range consists of views of the pattern. Gaps between tensors are zero, as they must be.

    Args:
        wire_format: The wire format.
        number: The client's number. The pattern starts at another offset for each.
    """

    def __init__(self, wire_format: WireFormat, number: int = 0) -> None:
        self.layout = wire_format.layout
        self._spec = wire_format.spec
        self._phase = number * PHASE_BYTES

    def read(self, piece: SegmentRange) -> Sequence[Buffer]:
        """Return the bytes of a range: views of the pattern for tensors, zeros for the gaps between them."""
        row = DTYPES[piece.dtype]
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


class DiscardingSink:
    """A sink that discards pieces after they were checked."""

    def write(self, piece: SegmentRange, body: memoryview) -> None:
        """Discard a piece."""


def pattern(dtype: str) -> npt.NDArray[Any]:
    """Return the pattern as bytes, extended by one piece, so that any piece is a single view."""
    with _PATTERN_LOCK:  # hundreds of clients start at once; only one computes the pattern
        return _make_pattern(dtype)


@cache
def _make_pattern(dtype: str) -> npt.NDArray[Any]:
    kind = np.dtype(dtype)
    count = PATTERN_BYTES // kind.itemsize
    noise = np.random.Generator(np.random.Philox(7)).normal(0, 0.05, count)
    values = (noise * 1_000 if kind.kind in "iu" else noise).astype(kind)
    whole = values.view(np.uint8)
    return np.concatenate([whole, whole[:MAX_PIECE_BYTES]])
