"""Arrays of every kind: read where they are, and given back alike.

Models come as NumPy arrays, as those of PyTorch, JAX or CuPy, or as anything with the buffer protocol or DLPack; and as
state dicts of state dicts. A library is a row of `ARRAY_LIBRARIES` and is imported only when an array of it has come.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
from flcore_kernels import BufferMismatch, DeviceArray, OutOfDeviceMemory, described, device_of

from flcore.errors import SpecError

AnyArrays = Mapping[str, Any]
"""Arrays by name, or mappings of them by name, and so on."""

Values = npt.NDArray[Any]
Converter = Callable[[Values], Any]
"""From values to an array of somebody's kind, which may keep the memory."""

DtypeAndShape = tuple[np.dtype[Any], tuple[int, ...]]
"""Dtype and shape."""

MAX_NESTING = 64
"""Mappings in mappings; beyond it, something contains itself or wants to exhaust the stack."""

HOST_DEVICE_TYPES = (1, 3)
"""DLPack's numbers of memory that a processor reads: plain, and pinned for CUDA."""


@dataclass(frozen=True)
class ArrayLibrary:
    """A library's arrays: `to_numpy` returns a view of one's values, a copy if it is on a device.

    `converter` returns what gives such
    an array, of the same library on the same device, for values.

    `to_device_array` tells what one is that is on a device, made contiguous there if need be; `empty_like` makes a new
    one like it, there, for results to be written to (None: results come from the host's memory). `metadata` returns
    dtype and shape of an array that `to_numpy` copies from a device, and copies nothing; None for one that is in memory
    or cannot be read.
    """

    to_numpy: Callable[[Any], Values]
    converter: Callable[[Any], Converter]
    to_device_array: Callable[[Any], DeviceArray]
    empty_like: Callable[[Any], Any] | None = None
    metadata: Callable[[Any], DtypeAndShape | None] | None = None


def as_array(thing: Any, name: str) -> Values:
    """Return a NumPy array over something's values, without a copy if they are in memory, or raise `SpecError`."""
    if isinstance(thing, np.ma.MaskedArray):
        raise SpecError(f"tensor {name!r}: a masked array hides values that would count; fill it first")
    if isinstance(thing, np.ndarray | np.generic):
        return np.asarray(thing)
    try:
        return _library_of(thing).to_numpy(thing)
    except (AttributeError, TypeError, ValueError, BufferError, RuntimeError) as error:
        raise _not_an_array(thing, name, error) from None


def as_buffer(thing: Any, name: str) -> Values | DeviceArray:
    """Return what is on a device as the kernels take it there, without a copy unless it has strides; see `as_array`."""
    if device_of(thing) is None:
        return as_array(thing, name)
    try:
        found = _library_of(thing).to_device_array(thing)
    except (AttributeError, BufferMismatch, RuntimeError, TypeError, ValueError) as error:
        raise _not_an_array(thing, name, error) from None
    if not found.flags.c_contiguous:
        raise SpecError(
            f"tensor {name!r}: it has strides, and {type(thing).__name__} is of no library that we know to "
            "ask for one without"
        )
    return found


def dtype_and_shape(thing: Any, name: str) -> DtypeAndShape:
    """Return an array's dtype and shape, without a copy of one that is on a device, or raise `SpecError`."""
    if isinstance(thing, np.ndarray | np.generic):
        return as_array(thing, name).dtype, thing.shape
    known = _library_of(thing).metadata
    try:
        if known is not None and (found := known(thing)) is not None:
            return found
        array = as_buffer(thing, name)
        return np.dtype(array.name) if isinstance(array, DeviceArray) else array.dtype, array.shape
    except (AttributeError, RuntimeError, TypeError, ValueError) as error:
        raise _not_an_array(thing, name, error) from None


def requires_copy(thing: Any) -> bool:
    """Say whether `as_array` copies a readable array from a device."""
    if isinstance(thing, np.ndarray | np.generic):
        return False
    known = _library_of(thing).metadata
    return device_of(thing) is not None or (known is not None and known(thing) is not None)


def empty_like(thing: Any, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Any:
    """Return a new array of the kind of `thing` on its device, with anything in it; NumPy's where there is no such."""
    library = None if device_of(thing) is None else _library_of(thing)
    if library is None or library.empty_like is None:
        return np.empty(shape, dtype)
    try:
        return library.empty_like(thing)
    except (MemoryError, RuntimeError) as error:
        needed = dtype.itemsize * math.prod(shape)
        raise OutOfDeviceMemory(f"there is no room for a result of {needed:,} bytes: {error}", needed) from None


def converter_for(thing: Any) -> Converter:
    """Return what gives arrays of the kind of `thing`; NumPy's, where its library is not one of `ARRAY_LIBRARIES`."""
    return _unchanged if isinstance(thing, np.ndarray | np.generic) else _library_of(thing).converter(thing)


def flatten(arrays: AnyArrays) -> AnyArrays:
    """Return arrays by their full names, such as "encoder.layer.weight", or raise `SpecError` where two have one name.

    >>> list(flatten({"encoder": {"weight": 1, "bias": 2}, "scale": 3}))
    ['encoder.weight', 'encoder.bias', 'scale']
    """
    if not any(isinstance(array, Mapping) for array in arrays.values()):
        return arrays
    flat: dict[str, Any] = {}
    for name, array in _walk(arrays, "", 1):
        if name in flat:
            raise SpecError(f"tensor {name!r} appears twice: once in a nested mapping, and once under its full name")
        flat[name] = array
    return flat


def unflatten(flat: Mapping[str, Any], like: AnyArrays, prefix: str = "") -> dict[str, Any]:
    """Return arrays nested as those of `like` are.

    >>> unflatten({"encoder.bias": 2, "scale": 3}, {"encoder": {"bias": None}, "scale": None})
    {'encoder': {'bias': 2}, 'scale': 3}
    """
    return {
        name: unflatten(flat, each, f"{prefix}{name}.") if isinstance(each, Mapping) else flat[prefix + name]
        for name, each in like.items()
    }


def converters_for(arrays: AnyArrays) -> AnyArrays:
    """Return what gives arrays of the kind of each, nested as they are; it holds none of them."""
    return unflatten({name: converter_for(array) for name, array in flatten(arrays).items()}, arrays)


def restore(values: Mapping[str, Any], converters: AnyArrays, ties: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Return values as arrays of some kinds (see `converters_for`); those of a name in `ties` are another name's array.

    What is no NumPy array is of its kind already.
    """
    ties, flat_converters = ties or {}, flatten(converters)
    flat = {
        name: flat_converters[name](array) if isinstance(array, np.ndarray) else array
        for name, array in values.items()
        if name not in ties
    }
    return unflatten(flat | {name: flat[first] for name, first in ties.items()}, converters)


def convert_like(arrays: Mapping[str, Values], like: AnyArrays) -> dict[str, Any]:
    """Return copies of named arrays, each of the kind of the array of its name in `like`, and nested as those are.

    Raises `SpecError` unless the two have the same names.
    """
    if odd := sorted(set(arrays) ^ set(flatten(like))):
        raise SpecError(f"like: it must have the tensors of the model, by name; {odd[0]!r} is in one of them only")
    return restore({name: array.copy() for name, array in arrays.items()}, converters_for(like))


def _walk(arrays: AnyArrays, prefix: str, depth: int) -> Iterator[tuple[str, Any]]:
    if depth > MAX_NESTING:
        raise SpecError(f"mappings are nested {MAX_NESTING} deep at most, not as {prefix[:40]}...")
    for name, array in arrays.items():
        if not isinstance(name, str):
            raise SpecError(f"a tensor's name is a string, not {name!r}{prefix and f' (in {prefix[:-1]!r})'}")
        if isinstance(array, Mapping):
            yield from _walk(array, f"{prefix}{name}.", depth + 1)
        else:
            yield prefix + name, array


def _not_an_array(thing: Any, name: str, error: Exception) -> SpecError:
    return SpecError(
        f"tensor {name!r}: expected an array of NumPy, PyTorch, JAX or CuPy, or something with the buffer protocol, "
        f"DLPack or __cuda_array_interface__, got {type(thing).__name__} ({error})"
    )


def _unchanged(values: Any) -> Any:
    return values


def _torch_to_numpy(tensor: Any) -> Values:
    import torch

    here = tensor.detach().resolve_conj().resolve_neg().cpu()
    if here.dtype is torch.bfloat16:  # of which NumPy itself knows nothing
        return np.asarray(here.view(torch.int16)).view(ml_dtypes.bfloat16)
    return np.asarray(here)


def _torch_metadata(tensor: Any) -> DtypeAndShape | None:
    import torch

    if tensor.device.type in ("cpu", "meta") or tensor.layout is not torch.strided:
        return None
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

    with torch.cuda.device(tensor.device):
        return described(_contiguous_torch(tensor))


def _contiguous_torch(tensor: Any) -> Any:
    return tensor.detach().resolve_conj().resolve_neg().contiguous()


def _torch_empty_like(tensor: Any) -> Any:
    import torch

    return torch.empty(tensor.shape, dtype=tensor.dtype, device=tensor.device)


def _jax_metadata(array: Any) -> DtypeAndShape | None:
    is_here = all(device.platform == "cpu" for device in array.devices())
    if is_here or array.is_deleted() or not array.is_fully_addressable:
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


def _buffer_to_numpy(thing: Any) -> Values:
    if device_of(thing) is not None:
        return _device_to_numpy(thing)
    if isinstance(thing, bytes | bytearray):
        raise TypeError("bytes are no array of numbers")
    try:
        return np.asarray(memoryview(thing))
    except TypeError:
        if not hasattr(thing, "__dlpack_device__"):
            raise
    if thing.__dlpack_device__()[0] not in HOST_DEVICE_TYPES:
        raise BufferError("it is on a device; bring it to the processor's memory first")
    return np.from_dlpack(thing)


def _device_to_numpy(thing: Any) -> Values:
    """Return a copy of what is on a CUDA device, of a library that we do not know; CuPy brings it."""
    try:
        import cupy
    except ImportError:
        raise BufferError("it is on a device, from which only CuPy could bring it; that is not installed") from None
    return np.asarray(cupy.asnumpy(cupy.from_dlpack(thing) if hasattr(thing, "__dlpack__") else cupy.asarray(thing)))


FALLBACK_LIBRARY = ArrayLibrary(_buffer_to_numpy, lambda _: _unchanged, described)
"""What has a buffer, or DLPack or `__cuda_array_interface__`; results are NumPy's."""

ARRAY_LIBRARIES: dict[str, ArrayLibrary] = {
    "torch": ArrayLibrary(_torch_to_numpy, _torch_converter, _torch_device_array, _torch_empty_like, _torch_metadata),
    "jaxlib": ArrayLibrary(np.asarray, _jax_converter, described, metadata=_jax_metadata),
    "cupy": ArrayLibrary(_cupy_to_numpy, _cupy_converter, _cupy_device_array, _cupy_empty_like, _cupy_metadata),
}
"""By the package in which the class of an array, or one of its bases, is defined."""


def _library_of(thing: Any) -> ArrayLibrary:
    for cls in type(thing).__mro__:
        if library := ARRAY_LIBRARIES.get(cls.__module__.partition(".")[0]):
            return library
    return FALLBACK_LIBRARY
