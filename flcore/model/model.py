"""A model's values in memory, and how they become a payload.

`Model` is flat: one contiguous array per segment, from which pieces are read without a copy. `NamedArrays` reads the
pieces of a payload straight from somebody's own arrays, tensor by tensor. `ModelPool` reuses the memory of models that
are no longer referenced, as the page faults of new memory cost a large model more than all other work on it. Code that
works through a model in chunks takes a `ChunkSource` or a `ChunkSink`, in memory or in files (`stored_model`,
`model_writer`).
"""

import weakref
from collections.abc import Iterator, Mapping
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from flcore_kernels import storage_dtype
from flcore_layout import Layout, SegmentRange
from flcore_transport import Buffer

from flcore.model.arrays import AnyArrays, as_array, convert_like, flatten
from flcore.model.chunks import require_chunk
from flcore.model.dtypes import DTYPES
from flcore.model.spec import ModelSpec
from flcore.model.wire_format import WireFormat

Arrays = Mapping[str, npt.NDArray[Any]]
"""A model as its users see it: arrays by name."""


def payload_layout(spec: ModelSpec) -> Layout:
    """Return what a payload that holds one model of this spec consists of."""
    return WireFormat.uncompressed(spec).layout


class Model:
    """A model's values, laid flat.

    `segments` holds one contiguous array per segment of the spec, in its storage dtype: 16-bit floats are the uint16 of
    their bits. It is both the source and the sink of a payload.

    >>> model = Model.of({"w": np.array([[1.0, 2.0]], np.float32)})
    >>> model.arrays()["w"]
    array([[1., 2.]], dtype=float32)
    """

    def __init__(self, spec: ModelSpec, segments: list[npt.NDArray[Any]] | None = None) -> None:
        """Allocate a model of zeros, or make one of its segments."""
        self.spec = spec
        self.segments = (
            [np.zeros(segment.elements, storage_dtype(segment.dtype)) for segment in spec.segments]
            if segments is None
            else segments
        )

    @classmethod
    def of(cls, arrays: AnyArrays) -> "Model":
        """Return a copy of named arrays of any kind, or raise `SpecError`."""
        model, flat = cls(ModelSpec.of(arrays)), flatten(arrays)
        for name, view in model._views():
            view[...] = as_array(flat[name], name)
        return model

    def arrays(self, like: AnyArrays | None = None) -> dict[str, Any]:
        """Return read-only views of the tensors, by name, in the order of the spec.

        With `like`, named arrays of the same model: copies of its arrays' kinds (PyTorch's, say), nested as it is.
        """
        views = dict(self._views())
        for view in views.values():
            view.flags.writeable = False
        ordered = {tensor.name: views[tensor.name] for tensor in self.spec.tensors}
        return ordered if like is None else convert_like(ordered, like)

    @property
    def layout(self) -> Layout:
        """What this model's payload consists of."""
        return payload_layout(self.spec)

    def read(self, piece: SegmentRange) -> list[Buffer]:
        """Return the bytes of a range. Never copies."""
        return [self.segments[piece.segment][piece.first : piece.first + piece.count].view(np.uint8).data]

    def write(self, piece: SegmentRange, body: memoryview) -> None:
        """Overwrite a range."""
        target = self.segments[piece.segment][piece.first : piece.first + piece.count]
        target[:] = np.frombuffer(body, target.dtype)

    def chunk(self, segment: int, first: int, stop: int) -> npt.NDArray[Any]:
        """Return a view of elements `first` to `stop` of a segment: to read them, or to fill them."""
        self.spec.segments[segment].require_range(first, stop)
        return self.segments[segment][first:stop]

    def put(self, segment: int, first: int, values: npt.NDArray[Any]) -> None:
        """Take elements from `first` on; those that were filled in the view that `chunk` returned are there already."""
        target = self.segments[segment][first : require_chunk(self.spec.segments[segment], first, values)]
        if target.ctypes.data != values.ctypes.data:
            target[:] = values

    def commit(self) -> "Model":
        """Return the model."""
        return self

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def _views(self) -> Iterator[tuple[str, npt.NDArray[Any]]]:
        for segment, values in zip(self.spec.segments, self.segments, strict=True):
            for span in segment.spans:
                flat = values[span.start : span.stop].view(DTYPES[segment.dtype])
                yield span.tensor.name, flat.reshape(span.tensor.shape)


class NamedArrays:
    """The payload of arrays that stay where they are; `arrays` must match `spec` (see `ModelSpec.require_match`).

    What is contiguous in memory is never copied for `read`; the rest is, range by range.
    """

    def __init__(self, spec: ModelSpec, arrays: AnyArrays) -> None:
        self.spec, self.layout = spec, payload_layout(spec)
        self._flat = {name: _flat(as_array(array, name)) for name, array in flatten(arrays).items()}

    def read(self, piece: SegmentRange) -> list[Buffer]:
        """Return the bytes of a range: slices of the arrays, and zeros for the gaps between them."""
        itemsize = DTYPES[piece.dtype].itemsize
        buffers: list[Buffer] = []
        position, stop = piece.first, piece.first + piece.count
        for begin, end, values in self._slices(piece.segment, piece.first, stop):
            buffers.append(bytes((begin - position) * itemsize))
            buffers.append(values.view(np.uint8).data)  # a bfloat16 array has no buffer protocol; its bytes do
            position = end
        buffers.append(bytes((stop - position) * itemsize))
        return buffers

    def chunk(self, segment: int, first: int, stop: int) -> npt.NDArray[Any]:
        """Return a copy of elements `first` to `stop` of a segment, in its storage dtype."""
        self.spec.segments[segment].require_range(first, stop)
        chunk = np.zeros(stop - first, storage_dtype(self.spec.segments[segment].dtype))
        for begin, end, values in self._slices(segment, first, stop):
            chunk[begin - first : end - first] = values.view(chunk.dtype)
        return chunk

    def _slices(self, segment: int, first: int, stop: int) -> Iterator[tuple[int, int, npt.NDArray[Any]]]:
        for span in self.spec.segments[segment].overlapping(first, stop):
            begin, end = max(span.start, first), min(span.stop, stop)
            yield begin, end, self._flat[span.tensor.name][begin - span.start : end - span.start]


def _flat(array: npt.NDArray[Any]) -> "npt.NDArray[Any] | np.flatiter[npt.NDArray[Any]]":
    """Return what slices into an array's elements in C order: views if it is contiguous, small copies if not."""
    return array.reshape(-1) if array.flags.c_contiguous else array.flat


Block = npt.NDArray[np.uint8]


class ModelPool:
    """Makes models of whatever values, in the memory of its earlier ones that nobody refers to any more.

    A view of a model's arrays counts as well. No more memory is held than there were models at once.
    """

    def __init__(self) -> None:
        self._free: dict[int, list[Block]] = {}

    def __call__(self, spec: ModelSpec) -> Model:
        """Return a model to fill."""
        return Model(spec, [self._array(each.elements, storage_dtype(each.dtype)) for each in spec.segments])

    def _array(self, elements: int, dtype: np.dtype[Any]) -> npt.NDArray[Any]:
        nbytes = elements * dtype.itemsize
        free = self._free.setdefault(nbytes, [])
        block = free.pop() if free else np.empty(nbytes, np.uint8)
        lease = _Lease(block)
        weakref.finalize(lease, free.append, block).atexit = False
        return np.asarray(lease).view(dtype)


class _Lease:
    """What every view of a block refers to in the end, so that it goes when the last of them goes."""

    def __init__(self, block: Block) -> None:
        self.__array_interface__ = block.__array_interface__
