"""Models in memory: `Model` (flat segments), `NamedArrays` (a user's own arrays), `ModelPool` (reused memory).

The first two are sources of a payload: the transport reads ranges of segments from them. Models in files have the same
methods (`stored_model`, `model_writer`).
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
from flcore.model.model_table import describe_model, model_html
from flcore.model.spec import ModelSpec
from flcore.model.wire_format import WireFormat

Arrays = Mapping[str, npt.NDArray[Any]]
"""NumPy arrays by name: a model as user code sees it."""


def payload_layout(spec: ModelSpec) -> Layout:
    """Return the layout of a payload of one model in its own dtypes."""
    return WireFormat.uncompressed(spec).layout


class Model:
    """A model in memory. It is both the source and the sink of a payload.

    Attributes:
        spec: The tensors and their places in the segments.
        segments: One contiguous array for each segment, in its storage dtype: 16-bit floats as the uint16 of their
            bits.

    Example:
        >>> model = Model.of({"w": np.array([[1.0, 2.0]], np.float32)})
        >>> model.arrays()["w"]
        array([[1., 2.]], dtype=float32)
    """

    def __init__(self, spec: ModelSpec, segments: list[npt.NDArray[Any]] | None = None) -> None:
        """Use the given segments, or allocate segments of zeros."""
        self.spec = spec
        self.segments = (
            [np.zeros(segment.elements, storage_dtype(segment.dtype)) for segment in spec.segments]
            if segments is None
            else segments
        )

    @classmethod
    def of(cls, arrays: AnyArrays) -> "Model":
        """Copy named arrays of any library into a model. Raises `SpecError`."""
        model, flat = cls(ModelSpec.of(arrays)), flatten(arrays)
        for name, view in model._views():
            view[...] = as_array(flat[name], name)
        return model

    def arrays(self, like: AnyArrays | None = None) -> dict[str, Any]:
        """Return the tensors by name, in the order of the spec.

        Args:
            like: Named arrays of the same model. The result has their libraries, devices and nesting. Default: None.

        Returns:
            Read-only views of the segments. With `like`, copies.

        Raises:
            SpecError: `like` has other tensors.
        """
        views = dict(self._views())
        for view in views.values():
            view.flags.writeable = False
        ordered = {tensor.name: views[tensor.name] for tensor in self.spec.tensors}
        return ordered if like is None else convert_like(ordered, like)

    @property
    def layout(self) -> Layout:
        """The layout of this model's payload."""
        return payload_layout(self.spec)

    def read(self, range_: SegmentRange) -> list[Buffer]:
        """Return the bytes of a range. Never copies."""
        return [self.segments[range_.segment][range_.first : range_.first + range_.count].view(np.uint8).data]

    def write(self, range_: SegmentRange, body: memoryview) -> None:
        """Overwrite a range."""
        target = self.segments[range_.segment][range_.first : range_.first + range_.count]
        target[:] = np.frombuffer(body, target.dtype)

    def chunk(self, segment: int, first: int, stop: int) -> npt.NDArray[Any]:
        """Return a view of elements `first` to `stop` of a segment, for reading or writing. Never copies."""
        self.spec.segments[segment].require_range(first, stop)
        return self.segments[segment][first:stop]

    def put(self, segment: int, first: int, values: npt.NDArray[Any]) -> None:
        """Write elements of a segment from `first` on. Does nothing for the view that `chunk` returned."""
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

    def __repr__(self) -> str:
        return f"<{describe_model('Model', self.spec)}>"

    def _repr_html_(self) -> str:
        return model_html("Model", self.spec)

    def _views(self) -> Iterator[tuple[str, npt.NDArray[Any]]]:
        for segment, values in zip(self.spec.segments, self.segments, strict=True):
            for span in segment.spans:
                flat = values[span.start : span.stop].view(DTYPES[segment.dtype])
                yield span.tensor.name, flat.reshape(span.tensor.shape)


class NamedArrays:
    """A payload that is read from a user's own arrays, without a copy of the model.

    Args:
        spec: The model; its order of the tensors is that of the payload.
        arrays: Arrays of any library by name, nested or not. They must match the spec (`ModelSpec.require_match`).
            Contiguous arrays in host memory are never copied; others are copied range by range, and those on a device
            once.
    """

    def __init__(self, spec: ModelSpec, arrays: AnyArrays) -> None:
        self.spec, self.layout = spec, payload_layout(spec)
        self._flat = {name: _flat(as_array(array, name)) for name, array in flatten(arrays).items()}

    def read(self, range_: SegmentRange) -> list[Buffer]:
        """Return the bytes of a range: slices of the arrays, and zeros for the gaps between them."""
        itemsize = DTYPES[range_.dtype].itemsize
        buffers: list[Buffer] = []
        position, stop = range_.first, range_.first + range_.count
        for begin, end, values in self._slices(range_.segment, range_.first, stop):
            buffers.append(bytes((begin - position) * itemsize))
            buffers.append(values.view(np.uint8).data)  # bfloat16 arrays have no buffer protocol; bytes have
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
    """Return an array's elements in C order, for slicing: slices are views if it is contiguous, else copies."""
    return array.reshape(-1) if array.flags.c_contiguous else array.flat


Block = npt.NDArray[np.uint8]


class ModelPool:
    """Creates uninitialized models in the memory of earlier ones that nobody refers to any more.

    malloc returns blocks as large as a model to the system. The page faults of new blocks then cost more than all other
    work on the model. The pool keeps as much memory as its models have needed at any one time, and a block is reused
    only after the last view of it is gone.
    """

    def __init__(self) -> None:
        self._free: dict[int, list[Block]] = {}

    def __call__(self, spec: ModelSpec) -> Model:
        """Return a model whose values are not initialized."""
        return Model(spec, [self._array(segment.elements, storage_dtype(segment.dtype)) for segment in spec.segments])

    def _array(self, elements: int, dtype: np.dtype[Any]) -> npt.NDArray[Any]:
        nbytes = elements * dtype.itemsize
        free = self._free.setdefault(nbytes, [])
        block = free.pop() if free else np.empty(nbytes, np.uint8)
        lease = _Lease(block)
        weakref.finalize(lease, free.append, block).atexit = False
        return np.asarray(lease).view(dtype)


class _Lease:
    """The owner of a block's views. NumPy keeps the object that exported an array's memory alive as its base.

    So the lease is finalized after the last view, also after views of views.
    """

    def __init__(self, block: Block) -> None:
        self.__array_interface__ = block.__array_interface__
