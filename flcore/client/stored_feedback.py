"""Error feedback in a file: the rounding errors of a compressed update, as a payload of float32 elements.

The errors that an update leaves are written with it, because the update itself may be gone when they are needed.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from flcore_layout import Layout, PayloadPart, Segment, SegmentRange
from flcore_transport import Buffer

from flcore.client.stored_pieces import StoredPieces
from flcore.model.compression import Compressor, Float32Array
from flcore.model.wire_format import WireFormat


def residual_layout(wire_format: WireFormat) -> Layout:
    """Return the layout of the rounding errors: a segment for each one of the model, empty if it is not compressed."""
    pairs = zip(wire_format.spec.segments, wire_format.dtypes, strict=True)
    segments = (Segment("float32", segment.elements if segment.dtype != dtype else 0) for segment, dtype in pairs)
    return Layout((PayloadPart("residuals", tuple(segments)),))


class NextResiduals:
    """The source of the rounding errors that a compressed update leaves. They are computed while they are read."""

    def __init__(self, compressor: Compressor, wire_format: WireFormat) -> None:
        self.layout = residual_layout(wire_format)
        self._compressor, self._wire_format = compressor, wire_format

    def read(self, range_: SegmentRange) -> Sequence[Buffer]:
        """Return the bytes of a range."""
        sent = replace(range_, dtype=self._wire_format.dtypes[range_.segment])
        return [self._compressor.rounding_error(sent).view(np.uint8).data]


class StoredFeedback:
    """The `Residuals` of a task, read from a file.

    Args:
        wire_format: The wire format of the update that left them.
        pieces: The file. None: no errors, as before the first update.
    """

    def __init__(self, wire_format: WireFormat, pieces: StoredPieces | None) -> None:
        self.wire_format = wire_format
        self._pieces = pieces

    def residual(self, piece: SegmentRange) -> Float32Array:
        """Return the error to add to a piece: a copy."""
        if self._pieces is None:
            return np.zeros(piece.count, np.float32)
        return np.frombuffer(b"".join(self._pieces.read(replace(piece, dtype="float32"))), np.float32)
