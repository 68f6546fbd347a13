"""The table of array libraries: how arrays of PyTorch, JAX and CuPy are read and created.

A library is a row of `ARRAY_LIBRARIES`. It is imported when the first of its arrays is converted, never before, so that
flcore depends on none of them. Arrays of all other libraries are read through the buffer protocol, DLPack or
`__cuda_array_interface__` (`FALLBACK_LIBRARY`).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
from flcore_kernels import DeviceArray, described, device_of

Values = npt.NDArray[Any]

Converter = Callable[[Values], Any]
"""Converts a NumPy array to an array of one library on one device. The result may share the memory of its argument."""

DtypeAndShape = tuple[np.dtype[Any], tuple[int, ...]]

HOST_DEVICE_TYPES = (1, 3)
"""DLPack's device types of memory that the CPU can read: kDLCPU and kDLCUDAHost (pinned memory)."""


@dataclass(frozen=True)
class ArrayLibrary:
    """How the arrays of one library are read and created.

    Attributes:
        to_numpy: Return a NumPy view of an array in host memory, or a copy of an array on a device.
        converter: Return a converter from NumPy to this library, with the device or sharding of the array.
        to_device_array: Describe an array on a CUDA device for the kernels, after making it contiguous there if needed.
        empty_like: Return an uninitialized array of the same shape, dtype and device. None: results are written to
            host memory.
        metadata: Return dtype and shape of an array on a device, without copying its values to the host. None for an
            array in host memory, or one that cannot be read; `to_numpy` handles these.
    """

    to_numpy: Callable[[Any], Values]
    converter: Callable[[Any], Converter]
    to_device_array: Callable[[Any], DeviceArray]
    empty_like: Callable[[Any], Any] | None = None
    metadata: Callable[[Any], DtypeAndShape | None] | None = None


def library_of(array: Any) -> ArrayLibrary:
    """Return the row of an array's library, or `FALLBACK_LIBRARY` if the table has none."""
    for cls in type(array).__mro__:  # bases too: a subclass of torch.Tensor is defined in its user's package
        if library := ARRAY_LIBRARIES.get(cls.__module__.partition(".")[0]):
            return library
    return FALLBACK_LIBRARY


def unchanged(values: Values) -> Values:
    """Return NumPy values as they are: the converter of every array without a row in the table."""
    return values


def _torch_to_numpy(tensor: Any) -> Values:
    import torch

    host = tensor.detach().resolve_conj().resolve_neg().cpu()
    if host.dtype is torch.bfloat16:  # PyTorch cannot export it to NumPy, which has no bfloat16 of its own
        return np.asarray(host.view(torch.int16)).view(ml_dtypes.bfloat16)
    return np.asarray(host)


def _torch_metadata(tensor: Any) -> DtypeAndShape | None:
    import torch

    if tensor.device.type in ("cpu", "meta") or tensor.layout is not torch.strided:
        return None
    # NumPy knows the name "bfloat16" because ml_dtypes has registered it.
    return np.dtype(str(tensor.dtype).removeprefix("torch.")), tuple(tensor.shape)


def _torch_converter(tensor: Any) -> Converter:
    import torch

    device = tensor.device

    def convert(values: Values) -> Any:
        if values.dtype == ml_dtypes.bfloat16:
            return torch.from_numpy(values.view(np.int16)).view(torch.bfloat16).to(device)
        return torch.from_numpy(values).to(device)

    return convert


def _torch_device_array(tensor: Any) -> DeviceArray:
    import torch

    with torch.cuda.device(tensor.device):  # the copy, if any, runs on that device's current stream
        return described(_contiguous_torch(tensor))


def _contiguous_torch(tensor: Any) -> Any:
    return tensor.detach().resolve_conj().resolve_neg().contiguous()


def _torch_empty_like(tensor: Any) -> Any:
    import torch

    return torch.empty(tensor.shape, dtype=tensor.dtype, device=tensor.device)


def _jax_metadata(array: Any) -> DtypeAndShape | None:
    is_on_host = all(device.platform == "cpu" for device in array.devices())
    # A sharded array of several processes has no complete values in any of them.
    if is_on_host or array.is_deleted() or not array.is_fully_addressable:
        return None
    return np.dtype(array.dtype), tuple(array.shape)


def _jax_converter(array: Any) -> Converter:
    import jax

    sharding = array.sharding
    return lambda values: jax.device_put(values, sharding)


def _cupy_to_numpy(array: Any) -> Values:
    import cupy

    return np.asarray(cupy.asnumpy(array))


def _cupy_metadata(array: Any) -> DtypeAndShape:
    return np.dtype(array.dtype), tuple(array.shape)


def _cupy_converter(array: Any) -> Converter:
    import cupy

    device = array.device

    def convert(values: Values) -> Any:
        with device:
            return cupy.asarray(values)

    return convert


def _cupy_device_array(array: Any) -> DeviceArray:
    import cupy

    with array.device:
        return described(cupy.ascontiguousarray(array))


def _cupy_empty_like(array: Any) -> Any:
    import cupy

    with array.device:
        return cupy.empty(array.shape, array.dtype)


def _buffer_to_numpy(array: Any) -> Values:
    if device_of(array) is not None:
        return _device_to_numpy(array)
    if isinstance(array, bytes | bytearray):  # they have the buffer protocol, but are hardly meant as a uint8 tensor
        raise TypeError("bytes are no array of numbers")
    try:
        return np.asarray(memoryview(array))
    except TypeError:
        if not hasattr(array, "__dlpack_device__"):
            raise
    if array.__dlpack_device__()[0] not in HOST_DEVICE_TYPES:
        raise BufferError("it is on a device: copy it to host memory first")
    return np.from_dlpack(array)


def _device_to_numpy(array: Any) -> Values:
    """Return a copy of an array on a CUDA device, made by CuPy: its own library is not in the table."""
    try:
        import cupy
    except ImportError:
        raise BufferError(
            "it is on a CUDA device, from which flcore copies with CuPy, which is not installed: install CuPy, or copy "
            "the array to host memory first"
        ) from None
    return np.asarray(cupy.asnumpy(cupy.from_dlpack(array) if hasattr(array, "__dlpack__") else cupy.asarray(array)))


FALLBACK_LIBRARY = ArrayLibrary(_buffer_to_numpy, lambda _: unchanged, described)
"""For objects with the buffer protocol, DLPack or `__cuda_array_interface__`. Results are NumPy arrays."""

ARRAY_LIBRARIES: dict[str, ArrayLibrary] = {
    "torch": ArrayLibrary(_torch_to_numpy, _torch_converter, _torch_device_array, _torch_empty_like, _torch_metadata),
    "jaxlib": ArrayLibrary(np.asarray, _jax_converter, described, metadata=_jax_metadata),
    "cupy": ArrayLibrary(_cupy_to_numpy, _cupy_converter, _cupy_device_array, _cupy_empty_like, _cupy_metadata),
}
"""By the package that defines an array's class or one of its bases. JAX's arrays are defined in jaxlib."""
