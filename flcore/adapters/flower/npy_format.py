"""Flower's arrays, which are NumPy's .npy format in `bytes`: read where they are, results written straight into it."""

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
MAX_HEADER_BYTES = 4096

SERIALIZED_AS = "numpy.ndarray"
"""What Flower calls the format."""

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
"""NumPy's format knows it as two bytes of anything; `Array.dtype` tells."""

Values = npt.NDArray[Any]


def array_views(record: ArrayRecord, client: str) -> dict[str, Values]:
    """Return views of a record's arrays, by name, or raise `TensorMismatch` for what is no array."""
    return {name: _values(array, name, client) for name, array in record.items()}


def convert(record: ArrayRecord, spec: ModelSpec) -> ArrayRecord:
    """Return a record in the dtypes of a spec that has its names; `AggregationError` where one cannot hold it."""
    dtypes = {tensor.name: tensor.dtype for tensor in spec.tensors}
    arrays = {}
    for name, values in array_views(record, "the global model").items():
        rounded = np.rint(values) if dtypes[name] in INTEGERS else values
        with np.errstate(over="ignore", invalid="ignore"):
            arrays[name] = rounded.astype(DTYPES[dtypes[name]])
        if not np.allclose(arrays[name].astype(np.float64), values.astype(np.float64), rtol=0.01, atol=1.0):
            raise AggregationError(f"tensor {name!r}: the global model does not fit into {dtypes[name]}, as it began")
    return ArrayRecord({name: Array(values) for name, values in arrays.items()})


def _values(array: Array, name: str, client: str) -> Values:
    try:
        if array.stype != SERIALIZED_AS:
            raise ValueError(f"it is serialized as {array.stype!r}, expected {SERIALIZED_AS!r}")
        start, shape, is_fortran, dtype = _header(array.data)
        dtype = BFLOAT16 if array.dtype == "bfloat16" and dtype == np.dtype("V2") else dtype
        if (str(dtype), shape) != (array.dtype, tuple(array.shape)):
            raise ValueError(
                f"announced as {array.dtype} of shape {tuple(array.shape)}, it is {dtype} of shape {shape}"
            )
        flat = np.frombuffer(memoryview(array.data)[start:], dtype)
        return flat.reshape(shape, order="F" if is_fortran else "C")
    except (ValueError, TypeError) as error:
        raise TensorMismatch(f"it is no array: {error}", client=client, tensor=name) from None


def _header(data: bytes) -> tuple[int, tuple[int, ...], bool, np.dtype[Any]]:
    """Return where the values begin, their shape, whether they are in Fortran's order, and their dtype.

    NumPy evaluates what it reads there; a stranger's header is only compared with what NumPy writes.
    """
    version = npy.read_magic(BytesIO(data[:8]))
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"version {version} of the .npy format holds no plain array")
    begin = 10 if version == (1, 0) else 12
    start = begin + int.from_bytes(data[8:begin], "little")
    found = HEADER.fullmatch(data[begin:start]) if start <= MAX_HEADER_BYTES else None
    if found is None:
        raise ValueError("its header is not as NumPy writes them")
    descr, order, extents = (each.decode("ascii") for each in found.groups())
    shape = tuple(int(extent) for extent in extents.split(",") if extent.strip())
    return start, shape, order == "True", np.dtype(descr)


class RecordBuilder:
    """A record in the making: `arrays` are to be written to, then `build` returns it, without a copy."""

    def __init__(self, spec: ModelSpec) -> None:
        self._files = {tensor.name: (tensor, _empty_file(tensor)) for tensor in spec.tensors}
        self.arrays = {name: _view(tensor, *file) for name, (tensor, file) in self._files.items()}

    def build(self) -> ArrayRecord:
        """Return the record; `arrays` is empty from then on."""
        self.arrays.clear()  # what has a view cannot be taken as bytes without a copy
        files, self._files = self._files, {}
        return ArrayRecord(
            {
                name: Array(tensor.dtype, tensor.shape, SERIALIZED_AS, file.getvalue())
                for name, (tensor, (file, _)) in files.items()
            }
        )


def _empty_file(tensor: TensorSpec) -> tuple[BytesIO, int]:
    """Return a file of a tensor of zeros, and where its values begin."""
    file, dtype = BytesIO(), DTYPES[tensor.dtype]
    npy.write_array_header_1_0(file, {"descr": dtype.str, "fortran_order": False, "shape": tensor.shape})
    start = file.tell()
    if tensor.size:
        file.seek(start + tensor.size * dtype.itemsize - 1)
        file.write(b"\0")
    return file, start


def _view(tensor: TensorSpec, file: BytesIO, start: int) -> Values:
    return np.frombuffer(file.getbuffer()[start:], DTYPES[tensor.dtype]).reshape(tensor.shape)
