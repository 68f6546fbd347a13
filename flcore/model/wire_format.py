"""How a model travels: the same flat segments, each perhaps in a narrower dtype than the model's own."""

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
    """A model's segments and the dtype in which each of them travels.

    >>> import numpy as np
    >>> wire_format = WireFormat.uncompressed(ModelSpec.of({"w": np.zeros(300, np.float32)}))
    >>> wire_format.dtypes, wire_format.nbytes
    (('float32',), 2048)
    """

    spec: ModelSpec
    dtypes: tuple[str, ...]

    @classmethod
    def uncompressed(cls, spec: ModelSpec) -> "WireFormat":
        """Return the form in which every segment travels as it is."""
        return cls(spec, tuple(segment.dtype for segment in spec.segments))

    @classmethod
    def compressed(cls, spec: ModelSpec, dtype: str | None) -> "WireFormat":
        """Return the form in which floats that are wider than `dtype` travel as `dtype`; None narrows nothing.

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
                dtype if NUMPY_DTYPES[each.dtype].itemsize > width and each.dtype not in INTEGERS else each.dtype
                for each in spec.segments
            ),
        )

    @cached_property
    def layout(self) -> Layout:
        """What a payload that holds one model consists of."""
        pairs = zip(self.dtypes, self.spec.segments, strict=True)
        return Layout((PayloadPart(MODEL_PART, tuple(Segment(dtype, segment.elements) for dtype, segment in pairs)),))

    @cached_property
    def pieces(self) -> PieceRanges:
        """All pieces of the payload, which are the chunks in which updates are folded, too."""
        return PieceRanges(self.layout)

    @cached_property
    def nbytes(self) -> int:
        """Bytes of all pieces' bodies."""
        return sum(body_bytes(piece.dtype, piece.count) for piece in self.pieces)

    @cached_property
    def tensor_spans(self) -> dict[str, tuple[int, TensorSpan]]:
        """Each tensor's segment, by index, and its place there; by name."""
        return {
            span.tensor.name: (index, span)
            for index, segment in enumerate(self.spec.segments)
            for span in segment.spans
        }

    @cached_property
    def description(self) -> str:
        """The tensors and the segments' dtypes as JSON: members of an object, without its braces."""
        return f'"segments": {json.dumps(self.dtypes)}, "tensors": {self.spec.to_json()}'

    def piece_at(self, segment: int, element: int) -> SegmentRange:
        """Return the piece that holds an element of a segment."""
        dtype, elements = self.dtypes[segment], self.spec.segments[segment].elements
        size = piece_elements(dtype)
        first = element // size * size
        return SegmentRange(segment, dtype, first, min(size, elements - first))
