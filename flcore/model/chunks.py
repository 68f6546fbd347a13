"""Models in chunks, which are ranges of their segments: read, made, copied and converted to another dtype.

The protocols say nothing of where a model is, in memory or in files. A chunk is as long as its caller asks for.
"""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Protocol, Self

import numpy.typing as npt
from flcore_kernels import storage_dtype
from flcore_layout import Layout, SegmentRange
from flcore_transport import Buffer
from flcore_transport.piece_format import piece_elements

from flcore.errors import SpecError
from flcore.model.arrays import AnyArrays
from flcore.model.dtypes import DTYPES, INTEGERS
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

    def read(self, piece: SegmentRange) -> list[Buffer]:
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


@dataclass(frozen=True)
class DtypeConversion:
    """A model as it is, and as it is to be: `dtypes` are those that the segments of `source` get."""

    source: ModelSpec
    target: ModelSpec
    dtypes: tuple[str, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of all segments of the source, in the dtypes of the target."""
        pairs = zip(self.source.segments, self.dtypes, strict=True)
        return sum(segment.elements * DTYPES[dtype].itemsize for segment, dtype in pairs)

    @cached_property
    def _positions(self) -> dict[str, tuple[int, int]]:
        """The segment of each tensor of the target, and its first element there."""
        return {
            span.tensor.name: (index, span.start)
            for index, segment in enumerate(self.target.segments)
            for span in segment.spans
        }

    def put(self, sink: ChunkSink, segment: int, first: int, values: npt.NDArray[Any]) -> None:
        """Put the values of a segment of the source, from `first` on, where they belong in the target.

        Segments that become one are put tensor by tensor, with the gap behind each.
        """
        spec, stop, dtype = self.source.segments[segment], first + values.size, self.dtypes[segment]
        if self.dtypes.count(dtype) == 1:
            sink.put([each.dtype for each in self.target.segments].index(dtype), first, values)
            return
        for span, end in zip(spec.spans, [*(span.start for span in spec.spans[1:]), spec.elements], strict=True):
            begin, until = max(first, span.start), min(stop, end)
            if begin < until:
                index, start = self._positions[span.tensor.name]
                sink.put(index, start + begin - span.start, values[begin - first : until - first])


def plan_dtype_conversion(spec: ModelSpec, dtype: str | None) -> DtypeConversion:
    """Return a model with another dtype for its floats (None: as it is), or raise `SpecError`.

    >>> import numpy as np
    >>> spec = ModelSpec.of({"w": np.zeros(3, np.float32), "n": np.zeros(2, np.int64)})
    >>> [tensor.dtype for tensor in plan_dtype_conversion(spec, "bfloat16").target.tensors]
    ['bfloat16', 'int64']
    """
    floats = [name for name in DTYPES if name not in INTEGERS]
    if dtype is not None and dtype not in floats:
        raise SpecError(f"floats become one of {', '.join(floats)}, not {dtype!r}")

    def becomes(own: str) -> str:
        return dtype if dtype is not None and own in floats else own

    target = ModelSpec(tuple(replace(tensor, dtype=becomes(tensor.dtype)) for tensor in spec.tensors))
    return DtypeConversion(spec, target, tuple(becomes(segment.dtype) for segment in spec.segments))
