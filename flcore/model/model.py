"""A model's values, and how they become a payload.

`Model` is flat: one contiguous array per segment, from which pieces are read without a copy. `NamedArrays` reads the
pieces of a payload straight from somebody's own arrays, tensor by tensor.
"""

from collections.abc import Iterator, Mapping
from typing import Any, Protocol, Self

import numpy as np
import numpy.typing as npt
from flcore_kernels import storage_dtype
from flcore_transport import Buffer, Layout, PieceRange

from flcore.model.dtypes import DTYPES
from flcore.model.form import Form
from flcore.model.spec import ModelSpec

Arrays = Mapping[str, npt.NDArray[Any]]
"""A model as its users see it: arrays by name."""


class GlobalModel(Protocol):
    """A model whose values can be read, wherever they are."""

    spec: ModelSpec

    @property
    def layout(self) -> Layout:
        """What the model's payload consists of."""
        ...

    def read(self, piece: PieceRange) -> list[Buffer]:
        """Return the bytes of a range."""
        ...

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """Return read-only arrays by name, in the order of the spec."""
        ...

    def chunk(self, segment: int, first: int, stop: int) -> npt.NDArray[Any]:
        """Return a range of a segment, in its storage dtype."""
        ...


class Target(Protocol):
    """Where a new model's values are put, chunk by chunk; as a context, it is given up unless it is committed."""

    def chunk(self, segment: int, first: int, stop: int) -> npt.NDArray[Any]:
        """Return an array to fill with a range of a segment."""
        ...

    def put(self, segment: int, first: int, values: npt.NDArray[Any]) -> None:
        """Take the values of a range."""
        ...

    def commit(self) -> GlobalModel:
        """Return the model, which is whole now."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...


def layout_of(spec: ModelSpec) -> Layout:
    """Return what a payload that holds one model of this spec consists of."""
    return Form.plain(spec).layout


class Model:
    """A model's values, laid flat.

    `segments` holds one contiguous array per segment of the spec, in its storage dtype: 16-bit floats are the uint16 of
    their bits. It is both the source and the sink of a payload.

    >>> model = Model.of({"w": np.array([[1.0, 2.0]], np.float32)})
    >>> model.arrays()["w"]
    array([[1., 2.]], dtype=float32)
    """

    def __init__(self, spec: ModelSpec) -> None:
        """Allocate a model of zeros."""
        self.spec = spec
        self.segments = [np.zeros(segment.elements, storage_dtype(segment.dtype)) for segment in spec.segments]

    @classmethod
    def of(cls, arrays: Arrays) -> "Model":
        """Return a copy of named arrays, or raise `SpecError`."""
        model = cls(ModelSpec.of(arrays))
        for name, view in model._views():
            view[...] = arrays[name]
        return model

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """Return read-only views of the tensors, by name, in the order of the spec."""
        views = dict(self._views())
        for view in views.values():
            view.flags.writeable = False
        return {tensor.name: views[tensor.name] for tensor in self.spec.tensors}

    @property
    def layout(self) -> Layout:
        """What this model's payload consists of."""
        return layout_of(self.spec)

    def chunk(self, segment: int, first: int, stop: int) -> npt.NDArray[Any]:
        """Return a view of a range."""
        return self.segments[segment][first:stop]

    def put(self, segment: int, first: int, values: npt.NDArray[Any]) -> None:
        """Take the values of a range, which may be the view that `chunk` gave."""
        target = self.segments[segment][first : first + values.size]
        if target.ctypes.data != values.ctypes.data:
            target[:] = values

    def commit(self) -> "Model":
        """Return the model."""
        return self

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def read(self, piece: PieceRange) -> list[Buffer]:
        """Return the bytes of a range. Never copies."""
        return [self.segments[piece.segment][piece.first : piece.first + piece.count].view(np.uint8).data]

    def write(self, piece: PieceRange, body: memoryview) -> None:
        """Overwrite a range."""
        target = self.segments[piece.segment][piece.first : piece.first + piece.count]
        target[:] = np.frombuffer(body, target.dtype)

    def _views(self) -> Iterator[tuple[str, npt.NDArray[Any]]]:
        for segment, values in zip(self.spec.segments, self.segments, strict=True):
            for span in segment.spans:
                flat = values[span.start : span.stop].view(DTYPES[segment.dtype])
                yield span.tensor.name, flat.reshape(span.tensor.shape)


class NamedArrays:
    """The payload of arrays that stay where they are; `arrays` must match `spec` (see `ModelSpec.require`).

    Only a tensor that is not contiguous in memory is copied, once.
    """

    def __init__(self, spec: ModelSpec, arrays: Arrays) -> None:
        self.layout = layout_of(spec)
        self._spec = spec
        # A bfloat16 array has no buffer protocol; its bytes do.
        self._bytes = {name: np.ascontiguousarray(array).reshape(-1).view(np.uint8) for name, array in arrays.items()}

    def read(self, piece: PieceRange) -> list[Buffer]:
        """Return the bytes of a range: slices of the arrays, and zeros for the gaps between them. Never copies."""
        itemsize = DTYPES[piece.dtype].itemsize
        buffers: list[Buffer] = []
        position, stop = piece.first, piece.first + piece.count
        for span in self._spec.segments[piece.segment].overlapping(piece.first, stop):
            begin, end = max(span.start, position), min(span.stop, stop)
            buffers.append(bytes((begin - position) * itemsize))
            tensor = self._bytes[span.tensor.name]
            buffers.append(tensor[(begin - span.start) * itemsize : (end - span.start) * itemsize].data)
            position = end
        buffers.append(bytes((stop - position) * itemsize))
        return buffers
