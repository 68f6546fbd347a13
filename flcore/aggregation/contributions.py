"""Contributions: what the engine combines. Each has a client, a weight, and elements that can be read in any range."""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from flcore_kernels import DeviceArray, storage_dtype
from flcore_layout import SegmentRange

from flcore.model.arrays import AnyArrays, as_array
from flcore.model.compression import KernelArray
from flcore.model.dtypes import DTYPES
from flcore.model.spec import ModelSpec, SegmentSpec
from flcore.model.stored_model import StoredModel
from flcore.model.wire_format import WireFormat

RANGE_ELEMENTS = 1 << 19
"""Of what is read at once where nothing else sets it: more do not make it faster."""

Buffers = list[list[Any]]
"""One list per segment, of the tensors' elements in their storage dtype: NumPy's arrays, or `DeviceArray`s."""


class Contribution(Protocol):
    """One client's elements and their weight. Reading consumes nothing."""

    @property
    def client(self) -> str:
        """Whose it is, as errors name it."""
        ...

    @property
    def weight(self) -> float:
        """Its admitted weight."""
        ...

    def read_range(self, piece: SegmentRange) -> KernelArray:
        """Return a range of a segment as the kernels take it."""
        ...


@dataclass(frozen=True, slots=True)
class ArrayContribution:
    """Arrays in memory or on a device, read where they are; `buffers` keep them alive.

    `converters` says what kinds of arrays they are, where results are to be alike (see `converters_for`).
    """

    client: str
    weight: float
    spec: ModelSpec
    buffers: Buffers
    converters: AnyArrays | None = None

    def read_range(self, piece: SegmentRange) -> KernelArray:
        """Return a range as one array: a view where it lies in one tensor, a copy where it does not."""
        return gather_range(self.spec, self.buffers, piece)

    def tensor_ranges(self, index: int) -> Iterator[tuple[SegmentRange, Any]]:
        """Yield a segment's elements in ranges that each lie in one tensor; those on a device tensor by tensor."""
        segment = self.spec.segments[index]
        for span, buffer in zip(segment.spans, self.buffers[index], strict=True):
            whole, is_here = SegmentRange(index, segment.dtype, span.start, span.tensor.size), are_on_host([buffer])
            for piece in split_range(whole, RANGE_ELEMENTS if is_here else sys.maxsize):
                first = piece.first - span.start
                yield piece, buffer.reshape(-1)[first : first + piece.count] if is_here else buffer


class StoredContribution:
    """A checkpoint, read into two buffers in turn: the range before is valid while the next one is read."""

    def __init__(self, client: str, weight: float, model: StoredModel, elements: int) -> None:
        self.client, self.weight, self._model = client, weight, model
        width = max(storage_dtype(segment.dtype).itemsize for segment in model.spec.segments)
        self._buffers = [np.empty(elements * width, np.uint8) for _ in range(2)]

    def read_range(self, piece: SegmentRange) -> KernelArray:
        """Return a range that is read from the file for this call."""
        self._buffers.reverse()
        storage = storage_dtype(piece.dtype)
        values: npt.NDArray[Any] = self._buffers[0][: piece.count * storage.itemsize].view(storage)
        self._model.read_into(piece.segment, piece.first, values)
        return values


class ConvertedContribution:
    """A checkpoint with floats of smaller dtypes than those of `spec`; reading converts them exactly."""

    def __init__(self, client: str, weight: float, model: StoredModel, spec: ModelSpec) -> None:
        self.client, self.weight, self._model, self._spec = client, weight, model, spec
        self._places = WireFormat.uncompressed(model.spec).tensor_spans

    def read_range(self, piece: SegmentRange) -> KernelArray:
        """Return a range that is read from the file for this call."""
        values, stop = np.zeros(piece.count, DTYPES[piece.dtype]), piece.first + piece.count
        for span in self._spec.segments[piece.segment].overlapping(piece.first, stop):
            begin, end = max(span.start, piece.first), min(span.stop, stop)
            index, theirs = self._places[span.tensor.name]
            shift = theirs.start - span.start
            elements = self._model.chunk(index, begin + shift, end + shift)
            values[begin - piece.first : end - piece.first] = elements.view(DTYPES[theirs.tensor.dtype])
        return values.view(storage_dtype(piece.dtype))


class ArraySink:
    """The arrays that a result is written to, range by range; what `chunk` returns is scratch."""

    def __init__(self, spec: ModelSpec, buffers: Buffers) -> None:
        self.spec, self._buffers, self._scratch = spec, buffers, np.empty(RANGE_ELEMENTS, np.uint64)

    def chunk(self, segment: int, first: int, stop: int) -> npt.NDArray[Any]:
        """Return an array to fill with elements `first` to `stop` of a segment."""
        return self._scratch.view(storage_dtype(self.spec.segments[segment].dtype))[: stop - first]

    def put(self, segment: int, first: int, values: npt.NDArray[Any]) -> None:
        """Write elements of a segment from `first` on to the tensors."""
        stop = first + values.size
        for begin, end, elements in _slices(self.spec.segments[segment], self._buffers[segment], first, stop):
            elements[...] = values[begin - first : end - first]


def model_ranges(
    spec: ModelSpec, elements: int = RANGE_ELEMENTS, segments: Sequence[int] | None = None
) -> list[SegmentRange]:
    """Return the ranges of at most so many elements that make up a model, or some of its segments."""
    chosen = range(len(spec.segments)) if segments is None else segments
    pieces = [SegmentRange(index, spec.segments[index].dtype, 0, spec.segments[index].elements) for index in chosen]
    return [part for piece in pieces for part in split_range(piece, elements)]


def segment_ranges(spec: ModelSpec, segments: Sequence[int] | None = None) -> list[SegmentRange]:
    """Return each segment of a model, or some of them, as one range; those without elements, not at all."""
    return model_ranges(spec, sys.maxsize, segments)


def split_range(piece: SegmentRange, elements: int) -> list[SegmentRange]:
    """Return a range in parts of at most so many elements."""
    stop = piece.first + piece.count
    firsts = range(piece.first, stop, elements)
    return [replace(piece, first=first, count=min(elements, stop - first)) for first in firsts]


def gather_range(spec: ModelSpec, buffers: Buffers, piece: SegmentRange) -> npt.NDArray[Any]:
    """Return a range of a model whose tensors are in `buffers`, with zeros in the gaps and for what is None there."""
    first, stop = piece.first, piece.first + piece.count
    slices = _slices(spec.segments[piece.segment], buffers[piece.segment], first, stop)
    if len(slices) == 1 and slices[0][:2] == (first, stop):
        return slices[0][2]
    values = np.zeros(piece.count, storage_dtype(spec.segments[piece.segment].dtype))
    for begin, end, elements in slices:
        values[begin - first : end - first] = elements
    return values


def are_on_host(buffers: list[Any]) -> bool:
    """Whether all tensors are in the host's memory."""
    return not any(isinstance(buffer, DeviceArray) for buffer in buffers)


def to_host(buffer: Any) -> npt.NDArray[Any]:
    """Return a tensor's elements, flat and in the host's memory: a copy where they are on a device."""
    values = as_array(buffer.owner, "") if isinstance(buffer, DeviceArray) else buffer
    return np.asarray(values).reshape(-1)


def _slices(segment: SegmentSpec, buffers: list[Any], first: int, stop: int) -> list[tuple[int, int, npt.NDArray[Any]]]:
    """Return where elements `first` to `stop` of a segment are in its tensors: their borders in it, and they."""
    found = []
    for index in segment.span_indices(first, stop):
        if (buffer := buffers[index]) is not None:
            span = segment.spans[index]
            begin, end = max(span.start, first), min(span.stop, stop)
            found.append((begin, end, buffer.reshape(-1)[begin - span.start : end - span.start]))
    return found
