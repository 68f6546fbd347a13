"""The tensors of one NVFLARE result that is on disk, read in ranges.

With `enable_tensor_disk_offload`, NVFLARE writes the tensors of a result to safetensors files, and the result has
references to them. NVFLARE documents one method of a reference, `materialize`, which reads a whole tensor. Where a file
is in it, is known for the releases in `KNOWN_RELEASES` only; references of other releases are materialized.
"""

import importlib.metadata
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from flcore_kernels import storage_dtype
from flcore_layout import SegmentRange

from flcore.errors import SpecError, StagingError, TensorMismatch
from flcore.model.array_libraries import Converter
from flcore.model.arrays import as_array, converter_for
from flcore.model.compression import KernelArray
from flcore.model.open_file import OpenFile
from flcore.model.safetensors_header import read_header
from flcore.model.spec import ModelSpec, TensorSpec

KNOWN_RELEASES = ("2.8", "2.9")
"""The releases of NVFLARE whose references have `file_path`, a safetensors file, and `key`, a tensor in it."""

REFERENCE = ("nvflare.app_opt.pt.lazy_tensor_dict", "_LazyRef")
"""The class of these references. It is compared by name, because its package imports PyTorch."""

Values = npt.NDArray[Any]
Place = tuple[TensorSpec, int]
"""A tensor of a file, and the offset of its first byte."""


def is_reference(tensor: object) -> bool:
    """Whether a tensor of a result is a reference to one on disk, of any release."""
    return callable(getattr(tensor, "materialize", None))


class StoredTensor(Protocol):
    """One tensor of a result."""

    @property
    def spec(self) -> TensorSpec:
        """The tensor under its name in the result."""
        ...

    @property
    def converter(self) -> Converter:
        """The converter from NumPy to the tensor's library."""
        ...

    def read_into(self, first: int, values: Values) -> None:
        """Read elements from `first` on into an array of the storage dtype. Raises `OSError` and `SpecError`."""
        ...


class FileTensor:
    """A tensor in a safetensors file, which is read where it is.

    The file is open only while it is read: a round may have more tensors than a process may have open files.
    """

    def __init__(self, reference: Any, path: Path, first_byte: int, spec: TensorSpec) -> None:
        self._reference = reference  # NVFLARE removes the file with the last reference
        self._path, self._first_byte, self.spec = path, first_byte, spec

    @property
    def converter(self) -> Converter:
        """The converter to PyTorch, as which these references materialize."""
        import torch

        return converter_for(torch.empty(0))

    def read_into(self, first: int, values: Values) -> None:
        """Read elements from `first` on."""
        offset = self._first_byte + first * values.itemsize
        OpenFile(self._path).read_at([values.view(np.uint8).data], offset)


class WholeTensor:
    """A tensor in memory, or one that can only be materialized.

    A materialized tensor is kept until its last element is read, so a result that is read in order has one in memory.
    """

    def __init__(self, name: str, tensor: Any) -> None:
        self._tensor = tensor
        self._values: Values | None = None
        values = self._materialized()
        if isinstance(values, Mapping):
            raise SpecError(f"tensor {name!r}: expected an array beside references, got nested ones")
        (self.spec,) = ModelSpec.of({name: values}).tensors
        self.converter = converter_for(values)

    def read_into(self, first: int, values: Values) -> None:
        """Copy elements from `first` on."""
        if self._values is None:
            flat = np.ascontiguousarray(as_array(self._materialized(), self.spec.name)).reshape(-1)
            self._values = flat.view(values.dtype)
        if self._values.size != self.spec.size:
            raise SpecError(f"expected {self.spec.size} elements as before, got {self._values.size}")
        values[...] = self._values[first : first + values.size]
        if first + values.size == self.spec.size:
            self._values = None

    def _materialized(self) -> Any:
        return self._tensor.materialize() if is_reference(self._tensor) else self._tensor


class ResultOnDisk:
    """A result as the engine reads it (see `Contribution`), into two buffers in turn.

    Attributes:
        client: The client's name.
        weight: The weight.
        tensors: The tensors by name.
    """

    def __init__(self, client: str, weight: float, spec: ModelSpec, tensors: Mapping[str, StoredTensor]) -> None:
        self.client, self.weight, self.tensors, self._spec = client, weight, tensors, spec
        self.free_buffers()

    def free_buffers(self) -> None:
        """Free the memory of the last two ranges."""
        self._buffers = [np.empty(0, np.uint8) for _ in range(2)]

    def read_range(self, range_: SegmentRange) -> KernelArray:
        """Read a range into the buffer that was not used last, with zeros in the gaps.

        Raises:
            StagingError: A file cannot be read.
        """
        storage, stop = storage_dtype(range_.dtype), range_.first + range_.count
        nbytes = range_.count * storage.itemsize
        self._buffers.reverse()
        if self._buffers[0].nbytes < nbytes:
            self._buffers[0] = np.empty(nbytes, np.uint8)
        values: Values = self._buffers[0][:nbytes].view(storage)
        position = range_.first
        for span in self._spec.segments[range_.segment].overlapping(range_.first, stop):
            begin, end = max(span.start, range_.first), min(span.stop, stop)
            values[position - range_.first : begin - range_.first] = 0
            self._read(span.tensor.name, begin - span.start, values[begin - range_.first : end - range_.first])
            position = end
        values[position - range_.first :] = 0
        return values

    def read_tensor(self, tensor: TensorSpec) -> Values:
        """Read a whole tensor into a new flat array of the storage dtype. Raises `StagingError`."""
        values = np.empty(tensor.size, storage_dtype(tensor.dtype))
        if tensor.size:
            self._read(tensor.name, 0, values)
        return values

    def _read(self, name: str, first: int, values: Values) -> None:
        try:
            self.tensors[name].read_into(first, values)
        except (OSError, SpecError) as error:
            raise StagingError(f"it cannot be read back: {error}", client=self.client, tensor=name) from error


def open_tensors(params: Mapping[str, Any], client: str) -> dict[str, StoredTensor]:
    """Return the tensors of a result by name, most of which are on disk.

    Args:
        params: Tensors and references to tensors.
        client: The client's name, for errors.

    Raises:
        TensorMismatch: A value is no tensor, or a file is not as its reference says.
        StagingError: A file cannot be read.
    """
    files: dict[Path, dict[str, Place]] = {}
    tensors: dict[str, StoredTensor] = {}
    for name, value in params.items():
        try:
            if not isinstance(name, str):
                raise SpecError(f"a tensor's name is a string, not {name!r}")
            place = _place_in_file(value)
            tensors[name] = WholeTensor(name, value) if place is None else _in_file(name, value, *place, files)
        except SpecError as error:
            raise TensorMismatch(str(error), client=client, tensor=str(name)) from None
        except OSError as error:
            raise StagingError(f"it cannot be read back: {error}", client=client, tensor=str(name)) from error
    return tensors


def _in_file(name: str, reference: Any, path: Path, key: str, files: dict[Path, dict[str, Place]]) -> FileTensor:
    if path not in files:
        header = read_header(OpenFile(path))
        places = zip(header.tensors, header.first_bytes, strict=True)
        files[path] = {tensor.name: (tensor, first_byte) for tensor, first_byte in places}
    if key not in files[path]:
        raise SpecError(f"{path}: expected a tensor {key!r}, and the file has none of this name")
    tensor, first_byte = files[path][key]
    return FileTensor(reference, path, first_byte, TensorSpec(name, tensor.dtype, tensor.shape))


def _place_in_file(value: Any) -> tuple[Path, str] | None:
    """Return the file and the key of a reference; None for anything else, and for releases that are not known."""
    if (type(value).__module__, type(value).__qualname__) != REFERENCE or not _is_known_release():
        return None
    return Path(value.file_path), value.key


@cache
def _is_known_release() -> bool:
    release = ".".join(importlib.metadata.version("nvflare").split(".")[:2])
    return release in KNOWN_RELEASES
