"""Flower's arrays: NumPy's .npy format in `bytes`. They are read in place, and results are written in place."""

import re
from io import BytesIO
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
from flwr.app import Array, ArrayRecord
from numpy.lib import format as npy

from flcore.errors import AggregationError, TensorMismatch
from flcore.model.dtypes import DTYPES, INTEGERS
from flcore.model.spec import ModelSpec, TensorSpec

HEADER = re.compile(
    rb"\{'descr': '([<>|][a-zA-Z]\d{1,4})', 'fortran_order': (True|False), 'shape': \(([\d, ]*)\), \} *\n"
)
"""The header as NumPy writes it."""

MAX_HEADER_BYTES = 4096
"""The longest header that is parsed. NumPy's headers of plain arrays are far shorter."""

SERIALIZED_AS = "numpy.ndarray"
"""Flower's name of the format (`Array.stype`)."""

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
"""In a .npy file, its dtype is V2, two bytes without meaning. `Array.dtype` says that they are bfloat16."""

Values = npt.NDArray[Any]


def array_views(record: ArrayRecord, client: str) -> dict[str, Values]:
    """Return views of a record's arrays, without a copy.

    Args:
        record: The record.
        client: The record's owner, for errors.

    Returns:
        Read-only NumPy arrays by name.

    Raises:
        TensorMismatch: An array is not in NumPy's format, or is not of the dtype and shape that Flower announces.
    """
    return {name: _values(array, name, client) for name, array in record.items()}


def convert(record: ArrayRecord, spec: ModelSpec) -> ArrayRecord:
    """Convert a record to the dtypes of a spec with the same names.

    Flower's FedAdam, for example, returns float64 for a float32 model.

    Args:
        record: The global model.
        spec: The model as it was sent first.

    Returns:
        The converted record. Values of integer dtypes are rounded.

    Raises:
        AggregationError: A dtype cannot hold the values.
    """
    dtypes = {tensor.name: tensor.dtype for tensor in spec.tensors}
    arrays = {}
    for name, values in array_views(record, "the global model").items():
        rounded = np.rint(values) if dtypes[name] in INTEGERS else values
        with np.errstate(over="ignore", invalid="ignore"):
            arrays[name] = rounded.astype(DTYPES[dtypes[name]])
        # The tolerance allows for rounding to bfloat16 and to integers; overflow and wrap-around are far beyond it.
        if not np.allclose(arrays[name].astype(np.float64), values.astype(np.float64), rtol=0.01, atol=1.0):
            raise AggregationError(
                f"tensor {name!r}: the global model does not fit into {dtypes[name]}, its dtype in the first round"
            )
    return ArrayRecord({name: Array(values) for name, values in arrays.items()})


def _values(array: Array, name: str, client: str) -> Values:
    try:
        if array.stype != SERIALIZED_AS:
            raise ValueError(f"it is serialized as {array.stype!r}, expected {SERIALIZED_AS!r}")
        start, shape, is_fortran, dtype = _header(array.data)
        dtype = BFLOAT16 if array.dtype == "bfloat16" and dtype == np.dtype("V2") else dtype
        if (str(dtype), shape) != (array.dtype, tuple(array.shape)):
            raise ValueError(
                f"announced as {array.dtype} of shape {tuple(array.shape)}, but its bytes are {dtype} of shape {shape}"
            )
        flat = np.frombuffer(memoryview(array.data)[start:], dtype)
        return flat.reshape(shape, order="F" if is_fortran else "C")
    except (ValueError, TypeError) as error:
        raise TensorMismatch(f"expected an array: {error}", client=client, tensor=name) from None


def _header(data: bytes) -> tuple[int, tuple[int, ...], bool, np.dtype[Any]]:
    """Return the offset of the values, their shape, whether they are in Fortran order, and their dtype.

    NumPy's own reader evaluates the header as a Python literal. A client's header is matched with a pattern instead.
    """
    version = npy.read_magic(BytesIO(data[:8]))
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"expected version 1.0 or 2.0 of the .npy format, got {version[0]}.{version[1]}")
    header_at = 10 if version == (1, 0) else 12
    values_at = header_at + int.from_bytes(data[8:header_at], "little")
    found = HEADER.fullmatch(data[header_at:values_at]) if values_at <= MAX_HEADER_BYTES else None
    if found is None:
        raise ValueError("its header is not one that NumPy writes for a plain array")
    descr, order, extents = (group.decode("ascii") for group in found.groups())
    shape = tuple(int(extent) for extent in extents.split(",") if extent.strip())
    return values_at, shape, order == "True", np.dtype(descr)


class RecordBuilder:
    """Builds a record without a copy of its values: write to `arrays`, then call `build`.

    Attributes:
        arrays: Views of the values in the .npy files, by name.
    """

    def __init__(self, spec: ModelSpec) -> None:
        self._files = {tensor.name: (tensor, _empty_file(tensor)) for tensor in spec.tensors}
        self.arrays = {name: _view(tensor, *file) for name, (tensor, file) in self._files.items()}

    def build(self) -> ArrayRecord:
        """Return the record, and empty `arrays`."""
        self.arrays.clear()  # BytesIO.getvalue copies while a view of its buffer exists
        files, self._files = self._files, {}
        return ArrayRecord(
            {
                name: Array(tensor.dtype, tensor.shape, SERIALIZED_AS, file.getvalue())
                for name, (tensor, (file, _)) in files.items()
            }
        )


def _empty_file(tensor: TensorSpec) -> tuple[BytesIO, int]:
    """Return a .npy file of zeros, and the offset of its values."""
    file, dtype = BytesIO(), DTYPES[tensor.dtype]
    npy.write_array_header_1_0(file, {"descr": dtype.str, "fortran_order": False, "shape": tensor.shape})
    start = file.tell()
    if tensor.size:
        file.seek(start + tensor.size * dtype.itemsize - 1)
        file.write(b"\0")
    return file, start


def _view(tensor: TensorSpec, file: BytesIO, start: int) -> Values:
    return np.frombuffer(file.getbuffer()[start:], DTYPES[tensor.dtype]).reshape(tensor.shape)
