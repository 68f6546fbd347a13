"""Arrays of any library on a device, read in place through DLPack or `__cuda_array_interface__`.

Both protocols also order work on streams. A DLPack exporter makes the stream that it is given wait for the exporter's
work. An array with the older interface names its stream, and ours waits for it. The arrays' metadata is checked,
because a kernel that reads unmapped memory makes the device unusable for the whole process.
"""

import ctypes
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any, NamedTuple, Protocol

import numpy as np
from flcore_layout import DTYPES

from flcore_kernels.errors import BufferMismatch

CUDA, CUDA_MANAGED = 2, 13
"""DLPack's device types of memory that a CUDA device reads: its own, and managed memory."""

LEGACY_STREAM = 1
"""CUDA's legacy default stream, in both protocols. Arrays that name no stream are written there."""

MOST_ELEMENTS, MOST_RANK = 2**48, 64
"""Bounds of plausible metadata: 2^48 elements are more than any device's memory, so no size overflows 64 bits."""

IMMUTABLE = ("jax", "jaxlib")
"""Libraries whose arrays must not be written to, although neither protocol says so."""

BY_THREAD = ("torch", "cupy")
"""Libraries whose exporters wait for the current stream of the calling thread, whichever array is exported. So one
export per call makes our stream wait for all arrays of the library."""

_CODES = {0: "int", 1: "uint", 2: "float", 4: "bfloat", 6: "bool"}
STORED: dict[str, np.dtype[Any]] = {
    name: np.dtype(row.storage) for name, row in DTYPES.items() if row.storage != name and not row.is_quantized
}
"""The storage of dtypes that kernels read as other numbers, such as bfloat16 as uint16. All others are their own."""


class _Tensor(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device", ctypes.c_int32),
        ("rank", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("vector", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("offset", ctypes.c_uint64),
    )


class _Versioned(ctypes.Structure):
    _fields_ = (
        ("major", ctypes.c_uint32),
        ("minor", ctypes.c_uint32),
        ("context", ctypes.c_void_p),
        ("deleter", ctypes.c_void_p),
        ("flags", ctypes.c_uint64),
        ("tensor", _Tensor),
    )


_pointer_of = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)(
    ("PyCapsule_GetPointer", ctypes.pythonapi)
)
_is_valid = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.py_object, ctypes.c_char_p)(("PyCapsule_IsValid", ctypes.pythonapi))


class Flags(NamedTuple):
    """The flags that NumPy's arrays have under these names."""

    c_contiguous: bool
    writeable: bool


class Place(Protocol):
    """The device on which arrays are read."""

    number: int

    def current(self) -> AbstractContextManager[None]:
        """Make it the current device, as exporters expect theirs to be."""
        ...

    def number_at(self, address: int) -> int:
        """Return the number of the device that an address is on."""
        ...


class Follower(Protocol):
    """A stream of ours that can wait for an array's stream."""

    pointer: int

    def follow(self, pointer: int) -> None:
        """Delay later work until the other stream has done what it has now."""
        ...


@dataclass(frozen=True, eq=False)
class DeviceArray:
    """Memory of a CUDA device.

    Attributes:
        address: The address of the first element.
        shape: The shape of the array.
        dtype: The NumPy dtype of the storage, such as uint16 for bfloat16.
        device: The number of the device.
        flags: Whether it is contiguous and writable.
        owner: The object that keeps the memory alive. After `described`, the library's array.
        name: The library's name of the dtype, such as "bfloat16"; empty for memory of flcore.
        is_described: Whether `described` made it. Then the owner is exported again before elements are read.
    """

    address: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    device: int
    flags: Flags
    owner: Any = field(default=None, repr=False)
    name: str = ""
    is_described: bool = False

    @property
    def size(self) -> int:
        """Number of elements."""
        return prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of all elements."""
        return self.size * self.dtype.itemsize


def device_of(thing: Any) -> int | None:
    """Return the number of the CUDA device that an array is on; None for anything else.

    Does not read elements, and does not raise for an object that claims a protocol without supporting it.

    Args:
        thing: Any object.

    Returns:
        The number of the device. It is 0 for an array with `__cuda_array_interface__` only, which does not say.

    Example:
        >>> device_of(np.zeros(3)) is None
        True
    """
    if isinstance(thing, DeviceArray):
        return thing.device
    if isinstance(thing, np.ndarray | np.generic):
        return None
    try:
        if hasattr(thing, "__dlpack_device__"):
            kind, number = thing.__dlpack_device__()
            return int(number) if int(kind) in (CUDA, CUDA_MANAGED) else None
        if hasattr(thing, "__cuda_array_interface__"):
            return 0
    except (ArithmeticError, AttributeError, BufferError, RuntimeError, TypeError, ValueError):
        return None  # it claims a protocol that it does not support
    return None


def described(thing: Any) -> DeviceArray:
    """Return the address, shape and dtype of an array on a device, without reading elements or waiting for its stream.

    Args:
        thing: An array with DLPack or `__cuda_array_interface__`, on a CUDA device.

    Raises:
        BufferMismatch: The array cannot be read on its device. The message says why.
    """
    if isinstance(thing, DeviceArray):
        return thing
    return replace(_metadata_of(thing, LEGACY_STREAM), owner=thing, is_described=True)


def on_device(thing: Any, place: Place, stream: Follower, waited: set[str]) -> DeviceArray:
    """Return an array on a device, ready to be read on `stream` (zero-copy), or raise `BufferMismatch`.

    `waited` are the libraries of `BY_THREAD` that the stream waits for already in this call; it is added to.
    """
    if isinstance(thing, DeviceArray) and not thing.is_described:
        return thing
    exporter = thing.owner if isinstance(thing, DeviceArray) else thing
    library = type(exporter).__module__.partition(".")[0]
    if library in waited and isinstance(thing, DeviceArray):
        return replace(thing, is_described=False)
    with place.current():
        if not hasattr(exporter, "__dlpack__"):
            found = _metadata_of(exporter, stream.pointer)
            if found.size:
                found = replace(found, device=place.number_at(found.address))
            for other in _streams_of(exporter):
                stream.follow(other)
            return found
        number = device_of(exporter)
        if number != place.number:  # exporters fail, or wait wrongly, if their device is not the current one
            raise BufferMismatch(wrong_device("it", number, place.number))
        found = _metadata_of(exporter, stream.pointer)
    if library in BY_THREAD:
        waited.add(library)
    return found


def wrong_device(what: str, number: int | None, ours: int) -> str:
    """Return the error message for an array on another device."""
    return f"{what} is on device {number}, and this backend works on device {ours}: ask for backend('cuda:{number}')"


def _metadata_of(thing: Any, stream: int) -> DeviceArray:
    """Return an array's address, shape and dtype. With DLPack, `stream` then waits for the exporter's work."""
    try:
        has_capsule = hasattr(thing, "__dlpack__")
        found = _from_capsule(_capsule_of(thing, stream)) if has_capsule else _from_interface(thing)
        _require_sound(found)
    except (ArithmeticError, AttributeError, BufferError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise BufferMismatch(f"a {type(thing).__name__} cannot be read on its device: {error}") from None
    if type(thing).__module__.partition(".")[0] in IMMUTABLE:
        return replace(found, flags=Flags(found.flags.c_contiguous, False))
    return found


def _capsule_of(thing: Any, stream: int) -> Any:
    try:
        return thing.__dlpack__(stream=stream, max_version=(1, 0))
    except TypeError:  # an exporter of DLPack before version 1.0
        return thing.__dlpack__(stream=stream)


def _from_capsule(capsule: Any) -> DeviceArray:
    """Read a capsule without consuming it: its destructor then frees the exporter's tensor."""
    is_read_only = False
    if _is_valid(capsule, b"dltensor_versioned"):
        versioned = _Versioned.from_address(_pointer_of(capsule, b"dltensor_versioned"))
        if versioned.major != 1:
            raise BufferError(f"it exports DLPack {versioned.major}; expected version 1")
        tensor, is_read_only = versioned.tensor, bool(versioned.flags & 1)
    else:
        tensor = _Tensor.from_address(_pointer_of(capsule, b"dltensor"))
    if tensor.device_type not in (CUDA, CUDA_MANAGED):
        raise BufferError(f"it is in memory of DLPack's kind {tensor.device_type}; expected a CUDA device")
    if not 0 <= tensor.rank <= MOST_RANK or (tensor.rank and not tensor.shape):
        raise BufferError(f"its number of dimensions is {tensor.rank}; expected 0 to {MOST_RANK}, with a shape")
    shape = tuple(tensor.shape[i] for i in range(tensor.rank))
    strides = tuple(tensor.strides[i] for i in range(tensor.rank)) if tensor.strides else None
    name = f"{_CODES.get(tensor.code, 'unknown')}{tensor.bits}"
    name = "bool" if name == "bool8" else name
    if tensor.vector != 1 or name.startswith("unknown"):
        raise BufferError(
            f"its elements are of DLPack's kind {tensor.code} in vectors of {tensor.vector}; expected numbers"
        )
    flags = Flags(_is_contiguous(shape, strides), not is_read_only)
    address = (tensor.data or 0) + tensor.offset
    return DeviceArray(address, shape, _storage(name), tensor.device, flags, capsule, name)


def _from_interface(thing: Any) -> DeviceArray:
    interface = thing.__cuda_array_interface__
    address, is_read_only = interface["data"]
    shape = tuple(int(extent) for extent in interface["shape"])
    dtype: np.dtype[Any] = np.dtype(interface["typestr"])
    if dtype.newbyteorder("=") != dtype or not dtype.itemsize:
        raise ValueError(f"its elements are {interface['typestr']!r}; expected numbers in native byte order")
    if interface.get("mask") is not None:
        raise ValueError("it has a mask, which kernels ignore; fill the masked elements first")
    strides = interface.get("strides")
    if strides is not None and any(step % dtype.itemsize for step in strides):
        raise ValueError(f"its strides are {tuple(strides)}; expected multiples of {dtype.itemsize} bytes")
    steps = None if strides is None else tuple(step // dtype.itemsize for step in strides)
    name = "bool" if dtype == np.bool_ else dtype.name
    flags = Flags(_is_contiguous(shape, steps), not is_read_only)
    return DeviceArray(int(address or 0), shape, _storage(name), device_of(thing) or 0, flags, thing, name)


def _streams_of(thing: Any) -> list[int]:
    """Return the streams that may still write to an array with the older interface: one or none."""
    interface = thing.__cuda_array_interface__
    stream = interface.get("stream")
    return [int(stream or LEGACY_STREAM)] if stream is not None or interface["version"] < 3 else []


def _require_sound(array: DeviceArray) -> None:
    if any(extent < 0 for extent in array.shape) or array.size > MOST_ELEMENTS:
        raise ValueError(f"its shape is {array.shape}; expected at most 2^48 elements")
    if not 0 <= array.address < 2**64 - array.nbytes or (array.size and not array.address):
        raise ValueError(f"its address is {array.address}, where {array.size} elements cannot be")
    if array.size and array.address % array.dtype.itemsize:
        raise ValueError(f"its address is {array.address}; expected a multiple of {array.dtype.itemsize} bytes")


def _storage(name: str) -> np.dtype[Any]:
    return STORED[name] if name in STORED else np.dtype(name)


def _is_contiguous(shape: tuple[int, ...], strides: tuple[int, ...] | None) -> bool:
    if strides is None or prod(shape) <= 1:
        return True
    expected = 1
    for extent, step in zip(reversed(shape), reversed(strides), strict=True):
        if extent != 1 and step != expected:
            return False
        expected *= extent
    return True
