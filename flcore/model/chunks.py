"""Models in chunks, which are ranges of segments: protocols to read and write them, copies, conversions of dtypes.

A `ChunkSource` or `ChunkSink` may be in memory (`Model`) or in files (`StoredModel`, `ModelWriter`). The caller chooses
the length of each chunk.
"""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Protocol, Self

import numpy as np
import numpy.typing as npt
import xxhash
from flcore_kernels import storage_dtype
from flcore_layout import Layout, SegmentRange
from flcore_transport import Buffer
from flcore_transport.piece_format import piece_elements

from flcore.errors import SpecError
from flcore.model.arrays import AnyArrays
from flcore.model.dtypes import DTYPES, INTEGERS
from flcore.model.spec import ModelSpec, SegmentSpec


class ChunkSource(Protocol):
    """A model that can be read in chunks."""

    @property
    def spec(self) -> ModelSpec:
        """The model's tensors."""
        ...

    def chunk(self, segment: int, first: int, stop: int) -> npt.NDArray[Any]:
        """Read a chunk.

        Args:
            segment: The index of the segment.
            first: The first element.
            stop: One past the last element.

        Returns:
            A flat array in the segment's storage dtype, with zeros in the gaps.

        Raises:
            SpecError: The range is not in the segment.
        """
        ...


class GlobalModel(ChunkSource, Protocol):
    """A global model, which clients download: a `Model` or a `StoredModel`. It is never changed."""

    @property
    def layout(self) -> Layout:
        """The layout of the model's payload."""
        ...

    def read(self, range_: SegmentRange) -> list[Buffer]:
        """Return the bytes of a range."""
        ...

    def arrays(self, like: AnyArrays | None = None) -> dict[str, Any]:
        """Return read-only arrays by name, in the order of the spec; with `like`, copies in its libraries."""
        ...


class ChunkSink(Protocol):
    """A model that can be written in chunks: fill the array that `chunk` returns, then `put` it."""

    @property
    def spec(self) -> ModelSpec:
        """The model's tensors."""
        ...

    def chunk(self, segment: int, first: int, stop: int) -> npt.NDArray[Any]:
        """Return an array for elements `first` to `stop` of a segment, not initialized."""
        ...

    def put(self, segment: int, first: int, values: npt.NDArray[Any]) -> None:
        """Write a chunk.

        Args:
            segment: The index of the segment.
            first: The first element.
            values: A flat array in the segment's storage dtype; the one that `chunk` returned, or any other.

        Raises:
            SpecError: The range is not in the segment, or the array has another dtype or layout.
        """
        ...


class ModelSink(ChunkSink, Protocol):
    """A model that is being written. As a context manager, it discards the model unless `commit` was called."""

    def commit(self) -> GlobalModel:
        """Return the complete model."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...


def copy_chunks(source: ChunkSource, sink: ChunkSink) -> None:
    """Copy a whole model, 2 MiB at a time, so that memory does not grow with it."""
    for index, segment in enumerate(source.spec.segments):
        size = piece_elements(segment.dtype)
        for first in range(0, segment.elements, size):
            sink.put(index, first, source.chunk(index, first, min(first + size, segment.elements)))


def elements_digest(source: ChunkSource) -> str:
    """Return the xxh3 digest (128 bits, in hexadecimal) of a model's tensors and elements, read 2 MiB at a time."""
    digest = xxhash.xxh3_128(source.spec.fingerprint.encode())
    for index, segment in enumerate(source.spec.segments):
        size = piece_elements(segment.dtype)
        for first in range(0, segment.elements, size):
            digest.update(source.chunk(index, first, min(first + size, segment.elements)).view(np.uint8).data)
    return digest.hexdigest()


def require_chunk(segment: SegmentSpec, first: int, values: npt.NDArray[Any]) -> int:
    """Check an array that is to be a chunk of a segment.

    Returns:
        One past the chunk's last element.

    Raises:
        SpecError: The range is not in the segment, or the array is not flat, contiguous and of the storage dtype.
    """
    storage = storage_dtype(segment.dtype)
    if values.dtype != storage or values.ndim != 1 or not values.flags.c_contiguous:
        raise SpecError(
            f"expected a flat, contiguous array of {storage} for elements of {segment.dtype}, "
            f"got {values.dtype} of shape {values.shape} and strides {values.strides}"
        )
    segment.require_range(first, first + values.size)
    return first + values.size


@dataclass(frozen=True)
class DtypeConversion:
    """The conversion of a model's floats to other dtypes, chunk by chunk.

    Segments may merge: if float32 becomes bfloat16, its tensors join those that were bfloat16 before, in the order of
    the spec. Chunks of the source are then not chunks of the target, and are put tensor by tensor.

    Attributes:
        source: The model before.
        target: The model after: the same tensors in the same order.
        dtypes: The target dtype of each segment of the source.
    """

    source: ModelSpec
    target: ModelSpec
    dtypes: tuple[str, ...]

    @property
    def nbytes(self) -> int:
        """The bytes of the source's segments in the target's dtypes."""
        pairs = zip(self.source.segments, self.dtypes, strict=True)
        return sum(segment.elements * DTYPES[dtype].itemsize for segment, dtype in pairs)

    @cached_property
    def _positions(self) -> dict[str, tuple[int, int]]:
        """For each tensor by name, the index of its segment in the target, and its first element there."""
        return {
            span.tensor.name: (index, span.start)
            for index, segment in enumerate(self.target.segments)
            for span in segment.spans
        }

    def put(self, sink: ChunkSink, segment: int, first: int, values: npt.NDArray[Any]) -> None:
        """Write converted values of a segment of the source to their place in the target.

        Args:
            sink: The target.
            segment: The index of the segment in the source.
            first: The first element in the source.
            values: The values, in the storage dtype of the target.
        """
        spec, stop, dtype = self.source.segments[segment], first + values.size, self.dtypes[segment]
        if self.dtypes.count(dtype) == 1:  # the segment merges with no other, so its ranges stay
            sink.put([target.dtype for target in self.target.segments].index(dtype), first, values)
            return
        # Each tensor is put with the gap after it, so that the sink receives every element, gaps included.
        ends = [*(span.start for span in spec.spans[1:]), spec.elements]
        for span, end in zip(spec.spans, ends, strict=True):
            overlap_start, overlap_stop = max(first, span.start), min(stop, end)
            if overlap_start < overlap_stop:
                index, start = self._positions[span.tensor.name]
                offset = start + overlap_start - span.start
                sink.put(index, offset, values[overlap_start - first : overlap_stop - first])


def plan_dtype_conversion(spec: ModelSpec, dtype: str | None) -> DtypeConversion:
    """Plan the conversion of a model's floats to one dtype. Integers and booleans keep theirs.

    Args:
        spec: The model.
        dtype: The floats' new dtype. None: no conversion.

    Returns:
        The conversion.

    Raises:
        SpecError: The dtype is not that of floats.

    >>> import numpy as np
    >>> spec = ModelSpec.of({"w": np.zeros(3, np.float32), "n": np.zeros(2, np.int64)})
    >>> [tensor.dtype for tensor in plan_dtype_conversion(spec, "bfloat16").target.tensors]
    ['bfloat16', 'int64']
    """
    floats = [name for name in DTYPES if name not in INTEGERS]
    if dtype is not None and dtype not in floats:
        raise SpecError(f"expected a dtype of floats ({', '.join(floats)}), got {dtype!r}")

    def converted(own: str) -> str:
        return dtype if dtype is not None and own in floats else own

    target = ModelSpec(tuple(replace(tensor, dtype=converted(tensor.dtype)) for tensor in spec.tensors))
    return DtypeConversion(spec, target, tuple(converted(segment.dtype) for segment in spec.segments))
