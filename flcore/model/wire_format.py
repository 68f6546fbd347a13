"""The wire format of a model: its segments, some of them in a narrower dtype than the model's own."""

import json
from dataclasses import dataclass
from functools import cached_property

from flcore_layout import DTYPES, Layout, PayloadPart, Segment, SegmentRange
from flcore_transport.piece_format import PieceRanges, body_bytes, piece_elements

from flcore.model.dtypes import DTYPES as NUMPY_DTYPES
from flcore.model.dtypes import INTEGERS
from flcore.model.spec import ModelSpec, TensorSpan

MODEL_PART = "model"


@dataclass(frozen=True)
class WireFormat:
    """The dtype in which each segment of a model travels.

    Attributes:
        spec: The model.
        dtypes: One dtype for each segment of the spec.

    >>> import numpy as np
    >>> wire_format = WireFormat.uncompressed(ModelSpec.of({"w": np.zeros(300, np.float32)}))
    >>> wire_format.dtypes, wire_format.nbytes
    (('float32',), 2048)
    """

    spec: ModelSpec
    dtypes: tuple[str, ...]

    @classmethod
    def uncompressed(cls, spec: ModelSpec) -> "WireFormat":
        """Return the format in which each segment travels in its own dtype."""
        return cls(spec, tuple(segment.dtype for segment in spec.segments))

    @classmethod
    def compressed(cls, spec: ModelSpec, dtype: str | None) -> "WireFormat":
        """Return the format in which floats wider than `dtype` travel as `dtype`; None compresses nothing.

        >>> import numpy as np
        >>> spec = ModelSpec.of({"w": np.zeros(300, np.float32), "n": np.zeros(3, np.int64)})
        >>> WireFormat.compressed(spec, "int8[256]").dtypes
        ('int8[256]', 'int64')
        """
        if dtype is None:
            return cls.uncompressed(spec)
        width = DTYPES[dtype].itemsize
        return cls(
            spec,
            tuple(
                dtype if NUMPY_DTYPES[own].itemsize > width and own not in INTEGERS else own
                for own in (segment.dtype for segment in spec.segments)
            ),
        )

    @cached_property
    def layout(self) -> Layout:
        """The layout of a payload of one model."""
        pairs = zip(self.dtypes, self.spec.segments, strict=True)
        return Layout((PayloadPart(MODEL_PART, tuple(Segment(dtype, segment.elements) for dtype, segment in pairs)),))

    @cached_property
    def pieces(self) -> PieceRanges:
        """All pieces of the payload. Updates are folded in chunks of the same ranges."""
        return PieceRanges(self.layout)

    @cached_property
    def nbytes(self) -> int:
        """The bytes of all pieces' bodies."""
        return sum(body_bytes(piece.dtype, piece.count) for piece in self.pieces)

    @cached_property
    def tensor_spans(self) -> dict[str, tuple[int, TensorSpan]]:
        """For each tensor by name, the index of its segment and its span there."""
        return {
            span.tensor.name: (index, span)
            for index, segment in enumerate(self.spec.segments)
            for span in segment.spans
        }

    @cached_property
    def description(self) -> str:
        """The tensors and the segments' dtypes, as the members of a JSON object without its braces."""
        return f'"segments": {json.dumps(self.dtypes)}, "tensors": {self.spec.to_json()}'

    def piece_at(self, segment: int, element: int) -> SegmentRange:
        """Return the piece that holds an element of a segment."""
        dtype, elements = self.dtypes[segment], self.spec.segments[segment].elements
        size = piece_elements(dtype)
        first = element // size * size
        return SegmentRange(segment, dtype, first, min(size, elements - first))
