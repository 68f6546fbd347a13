"""Models in ranges of their segments: what reads them, and what makes them, need not know where they are.

A range is called a chunk here, and is as long as whoever asks likes.
"""

from typing import Any, Protocol, Self

import numpy.typing as npt
from flcore_kernels import storage_dtype
from flcore_layout import Layout
from flcore_transport import Buffer, PieceRange
from flcore_transport.piece_format import piece_elements

from flcore.errors import SpecError
from flcore.model.arrays import AnyArrays
from flcore.model.spec import ModelSpec, SegmentSpec


class ChunkSource(Protocol):
    """A model whose values can be had in ranges of a segment."""

    @property
    def spec(self) -> ModelSpec:
        """What the model is."""
        ...

    def chunk(self, segment: int, first: int, stop: int) -> npt.NDArray[Any]:
        """Return elements `first` to `stop` of a segment (by index), flat, in its storage dtype; gaps are zero.

        Raises `SpecError` for a range that the segment has not got.
        """
        ...


class GlobalModel(ChunkSource, Protocol):
    """A model that clients read, wherever it is: a `Model` or a `StoredModel`. Nobody changes it."""

    @property
    def layout(self) -> Layout:
        """What the model's payload consists of."""
        ...

    def read(self, piece: PieceRange) -> list[Buffer]:
        """Return the bytes of a range."""
        ...

    def arrays(self, like: AnyArrays | None = None) -> dict[str, Any]:
        """Return read-only arrays by name, in the order of the spec; with `like`, copies of its arrays' kinds."""
        ...


class ChunkSink(Protocol):
    """A model whose values are made in ranges of a segment: fill what `chunk` returns, then `put` it."""

    @property
    def spec(self) -> ModelSpec:
        """What the model is."""
        ...

    def chunk(self, segment: int, first: int, stop: int) -> npt.NDArray[Any]:
        """Return an array to fill with elements `first` to `stop` of a segment; what is in it before is anything."""
        ...

    def put(self, segment: int, first: int, values: npt.NDArray[Any]) -> None:
        """Take elements of a segment from `first` on, as `chunk` returned them or any others like them.

        Raises `SpecError` for a range that the segment has not got, and for another dtype than its storage dtype.
        """
        ...


class ModelSink(ChunkSink, Protocol):
    """A model in the making; as a context, it is given up unless it is committed."""

    def commit(self) -> GlobalModel:
        """Return the model, which is whole now."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...


def copy_chunks(source: ChunkSource, sink: ChunkSink) -> None:
    """Copy a whole model, 2 MiB at a time."""
    for index, segment in enumerate(source.spec.segments):
        size = piece_elements(segment.dtype)
        for first in range(0, segment.elements, size):
            sink.put(index, first, source.chunk(index, first, min(first + size, segment.elements)))


def require_chunk(segment: SegmentSpec, first: int, values: npt.NDArray[Any]) -> int:
    """Return where the elements that begin at `first` stop, or raise `SpecError` if they are none of the segment."""
    storage = storage_dtype(segment.dtype)
    if values.dtype != storage or values.ndim != 1 or not values.flags.c_contiguous:
        raise SpecError(
            f"elements of {segment.dtype} are put as a flat, contiguous array of {storage}, "
            f"not as {values.dtype} of shape {values.shape} and strides {values.strides}"
        )
    segment.require_range(first, first + values.size)
    return first + values.size
