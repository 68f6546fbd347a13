"""Named arrays as the kernels take them: one list of buffers per segment, read in place.

A tensor is copied only if it is not contiguous, or if it is on a device and the CPU combines.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
from flcore_kernels import (
    Backend,
    BufferMismatch,
    DeviceArray,
    NotFinite,
    Overflow,
    TooManyTerms,
    WeightRange,
    storage_dtype,
)

from flcore.aggregation.contributions import Buffers, Contribution
from flcore.errors import AggregationError, NonFinite, OutOfBounds, TensorMismatch, WeightError
from flcore.model.arrays import AnyArrays, as_array, as_buffer, flatten, requires_copy
from flcore.model.dtypes import DTYPES
from flcore.model.spec import ModelSpec, SegmentSpec


class BufferReader:
    """Reads updates of one model, flat or nested, for the kernels of one device.

    Dtypes and shapes are looked up once: an update may have thousands of small tensors, and each takes Python code.
    """

    def __init__(self, spec: ModelSpec, device: Backend | None = None) -> None:
        self.spec = spec
        self._names = frozenset(tensor.name for tensor in spec.tensors)
        self._as_buffer = as_array if device is None or device.name == "cpu" else as_buffer
        # For each segment: the dtype to view its tensors in (None: their own), and their names, dtypes and shapes.
        self._segments = [
            (
                storage_dtype(segment.dtype) if DTYPES[segment.dtype] != storage_dtype(segment.dtype) else None,
                [(span.tensor.name, DTYPES[segment.dtype], span.tensor.shape) for span in segment.spans],
            )
            for segment in spec.segments
        ]

    def buffers(self, arrays: AnyArrays, client: str) -> Buffers:
        """Return an update's buffers, one list per segment, or raise `TensorMismatch` or `SpecError`."""
        if len(arrays) != len(self.spec.tensors) or not self._names.issubset(arrays):
            return self._flattened_buffers(arrays, client)
        gathered: Buffers = []
        for storage, tensors in self._segments:
            buffers = []
            for name, dtype, shape in tensors:
                array = arrays[name]
                if type(array) is not np.ndarray:
                    array = self._as_buffer(array, name)
                if isinstance(array, DeviceArray):
                    if DTYPES.get(array.name) != dtype or array.shape != shape:
                        self._refuse(arrays, client)
                    buffers.append(array)
                    continue
                if array.dtype != dtype or array.shape != shape:
                    self._refuse(arrays, client)
                if not array.flags.c_contiguous:
                    array = np.ascontiguousarray(array)
                buffers.append(array if storage is None else array.view(storage))
            gathered.append(buffers)
        return gathered

    def output_buffers(self, out: Mapping[str, Any]) -> Buffers:
        """Return the buffers of arrays to write into, or raise `TensorMismatch` if one cannot be written in place."""
        arrays = {}
        for name, given in flatten(out).items():
            array = self._as_buffer(given, name)
            arrays[name] = given if isinstance(array, DeviceArray) else array
            is_copy = not isinstance(array, DeviceArray) and requires_copy(given)
            # A second conversion has the same address only if both are views.
            if array is not given and (is_copy or address_of(array) != address_of(self._as_buffer(given, name))):
                raise TensorMismatch(
                    "out: expected an array in memory, got one whose values can only be copied", tensor=name
                )
            if not array.flags.c_contiguous or not array.flags.writeable:
                raise TensorMismatch(
                    "out: expected a contiguous array in memory that can be written to, got one that is "
                    + ("read-only" if array.flags.c_contiguous else "strided"),
                    tensor=name,
                )
        try:
            return self.buffers(arrays, client="")
        except TensorMismatch as error:
            raise TensorMismatch(f"out: {error}") from None

    def _flattened_buffers(self, arrays: AnyArrays, client: str) -> Buffers:
        """Flatten a nested update and return its buffers. Raises `TensorMismatch` if its names differ then too."""
        flat = flatten(arrays)
        if flat is arrays:
            self._refuse(arrays, client)
        return self.buffers(flat, client)

    def _refuse(self, arrays: Mapping[str, Any], client: str) -> None:
        """Raise `TensorMismatch` for an update whose tensors are not the model's."""
        if not arrays:
            raise TensorMismatch("it is missing", client=client, tensor=self.spec.tensors[0].name)
        self.spec.require_match(ModelSpec.of(arrays), client=client)


def address_of(array: npt.NDArray[Any] | DeviceArray) -> int:
    """Return the address of an array's first byte."""
    return array.address if isinstance(array, DeviceArray) else int(array.__array_interface__["data"][0])


@contextmanager
def attribute_errors(segment: SegmentSpec, contributions: Sequence[Contribution], first: int) -> Iterator[None]:
    """Turn errors of kernels, of elements from `first` on, into errors that name the client and the tensor."""
    try:
        yield
    except NotFinite as error:
        tensor, element = segment.locate(first + error.element)
        client = contributions[error.operand].client
        raise NonFinite(f"element {element} is {error.value}", client=client, tensor=tensor.name) from None
    except Overflow as error:
        tensor, element = segment.locate(first + error.element)
        if error.operand < 0:
            raise AggregationError(
                f"tensor {tensor.name!r}: element {element} of the result does not fit into {error.where}"
            ) from None
        client = contributions[error.operand].client
        raise OutOfBounds(f"element {element}: {error}", client=client, tensor=tensor.name) from None
    except WeightRange as error:
        raise WeightError(str(error)) from None
    except (TooManyTerms, BufferMismatch) as error:  # BufferMismatch: updates are on several devices
        raise AggregationError(str(error)) from None
