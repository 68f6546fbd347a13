"""A model that server and clients both have: what differences are added to, or what the clients began with."""

from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
from flcore_kernels import EXACT_INTEGER_LIMIT, Backend, storage_dtype
from flcore_transport import PieceRange

from flcore.aggregation.contributions import Buffers, are_on_host, on_host
from flcore.aggregation.passthrough import Mask, Values, constants_in
from flcore.model.chunks import ChunkSource
from flcore.model.dtypes import DTYPES, INTEGERS
from flcore.model.spec import ModelSpec


class Source(Protocol):
    """Reads ranges of a model."""

    def read(self, piece: PieceRange) -> Any:
        """Return a range, flat and in its storage dtype."""
        ...


@dataclass(frozen=True)
class ModelSource:
    """A global model, read in ranges."""

    model: ChunkSource

    def read(self, piece: PieceRange) -> Values:
        """Return a range, flat and in its storage dtype."""
        return self.model.chunk(piece.segment, piece.first, piece.first + piece.count)


class ConstantSource:
    """The tensors of some arrays that have elements which are not averaged; the other tensors count as zeros.

    Those of unsigned bytes are among them, and those with constants unless they are on a device.
    """

    def __init__(self, spec: ModelSpec, buffers: Buffers, device: Backend) -> None:
        self._spec = spec
        self._kept: list[dict[int, Values]] = []
        for segment, tensors in zip(spec.segments, buffers, strict=True):
            kept = {}
            if segment.dtype == "uint8":
                kept = {index: on_host(tensor).copy() for index, tensor in enumerate(tensors)}
            elif not is_plain(segment.dtype, device.largest([tensors], segment.dtype)[0]) and are_on_host(tensors):
                flat = {index: tensor.reshape(-1) for index, tensor in enumerate(tensors)}
                own = DTYPES[segment.dtype]
                kept = {index: each.copy() for index, each in flat.items() if constants_in(each.view(own)).any()}
            self._kept.append(kept)

    def __bool__(self) -> bool:
        """Whether there is any such tensor."""
        return any(self._kept)

    def read(self, piece: PieceRange) -> Values:
        """Return a range, flat and in its storage dtype."""
        segment, stop = self._spec.segments[piece.segment], piece.first + piece.count
        values = np.zeros(piece.count, storage_dtype(segment.dtype))
        for index in segment.indices(piece.first, stop):
            if index in self._kept[piece.segment]:
                span = segment.spans[index]
                begin, end = max(span.start, piece.first), min(span.stop, stop)
                elements = self._kept[piece.segment][index][begin - span.start : end - span.start]
                values[begin - piece.first : end - piece.first] = elements
        return values


class Known:
    """Reads a model, and remembers the largest magnitude of each range that it was asked about.

    `are_deltas` says whether updates are differences from this model.
    """

    def __init__(self, spec: ModelSpec, source: Source, device: Backend, *, are_deltas: bool) -> None:
        self._spec, self._source, self._device, self.are_deltas = spec, source, device, are_deltas
        self._magnitudes: dict[PieceRange, float] = {}

    def read(self, piece: PieceRange) -> Values:
        """Return a range's elements, flat and in their storage dtype."""
        values: Values = self._source.read(piece)
        return values

    def release(self) -> None:
        """Let the model go: nothing is read any more."""
        del self._source

    def values(self, piece: PieceRange) -> Values:
        """Return a range's elements in the tensors' dtype."""
        return self.read(piece).view(DTYPES[self._spec.segments[piece.segment].dtype])

    def magnitude(self, piece: PieceRange) -> float:
        """Return the largest magnitude in a range; infinite or NaN where not all of it is finite."""
        dtype = self._spec.segments[piece.segment].dtype
        own = piece if piece.dtype == dtype else replace(piece, dtype=dtype)
        if own not in self._magnitudes:
            (self._magnitudes[own],) = self._device.largest([self.read(own)], own.dtype)
        return self._magnitudes[own]

    def has_constants(self, piece: PieceRange) -> bool:
        """Whether a range has elements that no mean is taken of."""
        return not is_plain(self._spec.segments[piece.segment].dtype, self.magnitude(piece))

    def constants(self, piece: PieceRange) -> Mask:
        """Return which elements of a range no mean is taken of."""
        return constants_in(self.values(piece))


def is_plain(dtype: str, magnitude: float) -> bool:
    """Whether all elements are sure to be quantities where the largest magnitude, as a float64, is this."""
    return magnitude < EXACT_INTEGER_LIMIT if dtype in INTEGERS else magnitude < float("inf")
