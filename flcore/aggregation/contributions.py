"""Contributions: the inputs of the engine. Each has a client, a weight, and elements that are read in ranges."""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from flcore_kernels import DeviceArray, storage_dtype
from flcore_layout import ALIGNMENT, SegmentRange

from flcore.model.arrays import AnyArrays, as_array
from flcore.model.compression import KernelArray
from flcore.model.dtypes import DTYPES
from flcore.model.spec import ModelSpec, SegmentSpec
from flcore.model.stored_model import StoredModel
from flcore.model.wire_format import WireFormat

RANGE_ELEMENTS = 1 << 19
"""The default number of elements in a range, and the largest one: longer ranges are not faster."""

Buffers = list[list[Any]]
"""A model's tensors, one list per segment, in their storage dtype: NumPy arrays or `DeviceArray`s."""


class Contribution(Protocol):
    """One client's elements and their weight. Reading consumes nothing."""

    @property
    def client(self) -> str:
        """The client that errors name."""
        ...

    @property
    def weight(self) -> float:
        """The admitted weight."""
        ...

    def read_range(self, range_: SegmentRange) -> KernelArray:
        """Return a range of a segment as the kernels take it. It is valid until the call after the next one."""
        ...


@dataclass(frozen=True, slots=True)
class ArrayContribution:
    """Arrays in host memory or on a device, read in place; `buffers` keep them alive.

    `converters` has, for each tensor, the function that converts a result to the array's library and device
    (see `converters_for`). It is set where results follow this update.
    """

    client: str
    weight: float
    spec: ModelSpec
    buffers: Buffers
    converters: AnyArrays | None = None

    def read_range(self, range_: SegmentRange) -> KernelArray:
        """Return a range as one array: a view if it lies in one tensor, or else a copy."""
        return gather_range(self.spec, self.buffers, range_)

    def tensor_ranges(self, index: int) -> Iterator[tuple[SegmentRange, Any]]:
        """Yield a segment's elements in ranges within one tensor, as views. A tensor on a device is one range."""
        segment = self.spec.segments[index]
        for span, buffer in zip(segment.spans, self.buffers[index], strict=True):
            tensor, on_host = SegmentRange(index, segment.dtype, span.start, span.tensor.size), are_on_host([buffer])
            for range_ in split_range(tensor, RANGE_ELEMENTS if on_host else sys.maxsize):
                first = range_.first - span.start
                yield range_, buffer.reshape(-1)[first : first + range_.count] if on_host else buffer


class StoredContribution:
    """A checkpoint, read into two buffers in turn.

    `prefetch` reads the next range while the current one is combined. Buffers are reused, as fresh pages cost more than
    the read.
    """

    def __init__(self, client: str, weight: float, model: StoredModel, elements: int) -> None:
        self.client, self.weight, self._model = client, weight, model
        width = max(storage_dtype(segment.dtype).itemsize for segment in model.spec.segments)
        self._buffers = [np.empty(elements * width, np.uint8) for _ in range(2)]

    def read_range(self, range_: SegmentRange) -> KernelArray:
        """Read a range from the file into the buffer that was not used last."""
        self._buffers.reverse()
        storage = storage_dtype(range_.dtype)
        values: npt.NDArray[Any] = self._buffers[0][: range_.count * storage.itemsize].view(storage)
        self._model.read_into(range_.segment, range_.first, values)
        return values


class ConvertedContribution:
    """A checkpoint with floats of smaller dtypes than those of `spec`. Reading converts them, without rounding."""

    def __init__(self, client: str, weight: float, model: StoredModel, spec: ModelSpec) -> None:
        self.client, self.weight, self._model, self._spec = client, weight, model, spec
        self._spans = WireFormat.uncompressed(model.spec).tensor_spans

    def read_range(self, range_: SegmentRange) -> KernelArray:
        """Read a range from the file into a new array."""
        values, stop = np.zeros(range_.count, DTYPES[range_.dtype]), range_.first + range_.count
        for span in self._spec.segments[range_.segment].overlapping(range_.first, stop):
            begin, end = max(span.start, range_.first), min(span.stop, stop)
            index, stored = self._spans[span.tensor.name]
            shift = stored.start - span.start
            elements = self._model.chunk(index, begin + shift, end + shift)
            values[begin - range_.first : end - range_.first] = elements.view(DTYPES[stored.tensor.dtype])
        return values.view(storage_dtype(range_.dtype))


class ArraySink:
    """A `ChunkSink` over arrays. `chunk` returns one scratch array again and again, and `put` copies from it.

    Chunks have at most `elements` elements.
    """

    def __init__(self, spec: ModelSpec, buffers: Buffers, elements: int = RANGE_ELEMENTS) -> None:
        self.spec, self._buffers, self._scratch = spec, buffers, np.empty(elements, np.uint64)

    def chunk(self, segment: int, first: int, stop: int) -> npt.NDArray[Any]:
        """Return an array to fill with elements `first` to `stop` of a segment."""
        return self._scratch.view(storage_dtype(self.spec.segments[segment].dtype))[: stop - first]

    def put(self, segment: int, first: int, values: npt.NDArray[Any]) -> None:
        """Copy elements of a segment, from `first` on, into the tensors."""
        stop = first + values.size
        for begin, end, elements in _slices(self.spec.segments[segment], self._buffers[segment], first, stop):
            elements[...] = values[begin - first : end - first]


def model_ranges(
    spec: ModelSpec, elements: int = RANGE_ELEMENTS, segments: Sequence[int] | None = None
) -> list[SegmentRange]:
    """Return ranges of at most `elements` elements that cover a model, or some of its segments."""
    chosen = range(len(spec.segments)) if segments is None else segments
    wholes = [SegmentRange(index, spec.segments[index].dtype, 0, spec.segments[index].elements) for index in chosen]
    return [range_ for whole in wholes for range_ in split_range(whole, elements)]


def measured_ranges(spec: ModelSpec) -> list[SegmentRange]:
    """Return ranges that cover a model in memory, for figures: a large tensor is one range, which needs no copy."""
    ranges = []
    for index, segment in enumerate(spec.segments):
        first = 0
        for span in segment.spans:
            if span.tensor.size >= RANGE_ELEMENTS:
                ranges += split_range(SegmentRange(index, segment.dtype, first, span.start - first), RANGE_ELEMENTS)
                ranges.append(SegmentRange(index, segment.dtype, span.start, span.tensor.size))
                first = span.start + -(-span.tensor.size // ALIGNMENT) * ALIGNMENT
        left = max(0, segment.elements - first)
        ranges += split_range(SegmentRange(index, segment.dtype, first, left), RANGE_ELEMENTS)
    return ranges


def segment_ranges(spec: ModelSpec, segments: Sequence[int] | None = None) -> list[SegmentRange]:
    """Return each segment of a model, or some of them, as one range. Leaves out segments without elements."""
    return model_ranges(spec, sys.maxsize, segments)


def split_range(range_: SegmentRange, elements: int) -> list[SegmentRange]:
    """Split a range into ranges of at most `elements` elements."""
    stop = range_.first + range_.count
    firsts = range(range_.first, stop, elements)
    return [replace(range_, first=first, count=min(elements, stop - first)) for first in firsts]


def gather_range(spec: ModelSpec, buffers: Buffers, range_: SegmentRange) -> npt.NDArray[Any]:
    """Return a range of the tensors in `buffers`, with zeros in gaps and for tensors that are None."""
    first, stop = range_.first, range_.first + range_.count
    slices = _slices(spec.segments[range_.segment], buffers[range_.segment], first, stop)
    if len(slices) == 1 and slices[0][:2] == (first, stop):
        return slices[0][2]
    values = np.zeros(range_.count, storage_dtype(spec.segments[range_.segment].dtype))
    for begin, end, elements in slices:
        values[begin - first : end - first] = elements
    return values


def are_on_host(buffers: list[Any]) -> bool:
    """Return whether all tensors are in host memory."""
    return not any(isinstance(buffer, DeviceArray) for buffer in buffers)


def to_host(buffer: Any) -> npt.NDArray[Any]:
    """Return a tensor's elements, flat and in host memory: a copy if they are on a device, or else a view."""
    values = as_array(buffer.owner, "") if isinstance(buffer, DeviceArray) else buffer
    return np.asarray(values).reshape(-1)


def _slices(segment: SegmentSpec, buffers: list[Any], first: int, stop: int) -> list[tuple[int, int, npt.NDArray[Any]]]:
    """Return each tensor's part of elements `first` to `stop` of a segment: where it begins and ends, and a view."""
    found = []
    for index in segment.span_indices(first, stop):
        if (buffer := buffers[index]) is not None:
            span = segment.spans[index]
            begin, end = max(span.start, first), min(span.stop, stop)
            found.append((begin, end, buffer.reshape(-1)[begin - span.start : end - span.start]))
    return found
