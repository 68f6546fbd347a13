"""How a model travels: the same flat segments, each perhaps in a narrower dtype than the model's own."""

from dataclasses import dataclass
from functools import cached_property

from flcore_transport import Layout, Part, PiecePlan, PieceRange, Segment, body_bytes, piece_elements

from flcore.model.spec import ModelSpec

PART = "model"


@dataclass(frozen=True)
class Form:
    """A model's segments and the dtype in which each of them travels.

    >>> import numpy as np
    >>> form = Form.plain(ModelSpec.of({"w": np.zeros(300, np.float32)}))
    >>> form.dtypes, form.nbytes
    (('float32',), 2048)
    """

    spec: ModelSpec
    dtypes: tuple[str, ...]

    @classmethod
    def plain(cls, spec: ModelSpec) -> "Form":
        """Return the form in which every segment travels as it is."""
        return cls(spec, tuple(segment.dtype for segment in spec.segments))

    @cached_property
    def layout(self) -> Layout:
        """What a payload that holds one model consists of."""
        pairs = zip(self.dtypes, self.spec.segments, strict=True)
        return Layout((Part(PART, tuple(Segment(dtype, segment.elements) for dtype, segment in pairs)),))

    @cached_property
    def pieces(self) -> PiecePlan:
        """All pieces of the payload, which are the chunks in which updates are folded, too."""
        return PiecePlan(self.layout)

    @cached_property
    def nbytes(self) -> int:
        """Bytes of all pieces' bodies."""
        return sum(body_bytes(piece.dtype, piece.count) for piece in self.pieces)

    def piece_at(self, segment: int, element: int) -> PieceRange:
        """Return the piece that holds an element of a segment."""
        dtype, elements = self.dtypes[segment], self.spec.segments[segment].elements
        size = piece_elements(dtype)
        first = element // size * size
        return PieceRange(0, segment, dtype, first, min(size, elements - first))
