"""Arrays on a device, of whatever library: read where they are, through DLPack or `__cuda_array_interface__`.

Both protocols also tell in which order things happen. A DLPack exporter makes the stream that it is given wait for its
own work; an array with the older interface names its stream, for which we wait ourselves.
"""

import ctypes
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any, NamedTuple

import numpy as np

from flcore_kernels.errors import BufferMismatch

CUDA, CUDA_MANAGED = 2, 13
"""DLPack's numbers of memory that a CUDA device reads."""

NO_STREAM, LEGACY_STREAM = -1, 1
"""DLPack's number of nobody's stream; and both protocols' of the one that CUDA calls default, where the work of arrays
that name none is taken to be."""

_CODES = {0: "int", 1: "uint", 2: "float", 4: "bfloat", 6: "bool"}
_STORED: dict[str, np.dtype[Any]] = {
    "bfloat16": np.dtype(np.uint16),
    "float16": np.dtype(np.uint16),
    "bool": np.dtype(np.uint8),
}
"""What dtypes are stored as that the kernels see as other numbers; the rest as what they are."""


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


class Flags(NamedTuple):
    """What NumPy calls so."""

    c_contiguous: bool
    writeable: bool


@dataclass(frozen=True, eq=False)
class DeviceArray:
    """Memory of a CUDA device, by its address; `owner` keeps it.

    `dtype` is the storage's, `name` the dtype that the library gives it (none for memory of ours). One that was only
    `described` has its exporter as the owner, who is asked again when the elements are read.
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
    """Return the number of the CUDA device that something's elements are on; None where they are on none."""
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
    except (AttributeError, BufferError, RuntimeError, TypeError, ValueError):
        return None  # it claims a protocol that it does not speak
    return None


def described(thing: Any) -> DeviceArray:
    """Return what something on a device is, and where, or raise `BufferMismatch`; nobody waits for anything."""
    seen = on_device(thing, device_of(thing) or 0, NO_STREAM, lambda _: None)
    return seen if isinstance(thing, DeviceArray) else replace(seen, owner=thing, is_described=True)


def on_device(thing: Any, device: int, stream: int, follow: Callable[[int], None]) -> DeviceArray:
    """Return what is on a device as the kernels take it, or raise `BufferMismatch`; nothing is copied.

    `stream` is the number of ours, which will come after what was asked of the array's before; `follow` makes it wait
    for another. An array with the older interface does not tell where it is, and is taken to be on `device`.
    """
    if isinstance(thing, DeviceArray):
        return on_device(thing.owner, device, stream, follow) if thing.is_described else thing
    try:
        if hasattr(thing, "__dlpack__"):
            return _from_capsule(_capsule_of(thing, stream))
        return _from_interface(thing, device, follow)
    except (AttributeError, BufferError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise BufferMismatch(f"a {type(thing).__name__} cannot be read on its device: {error}") from None


def _capsule_of(thing: Any, stream: int) -> Any:
    try:
        return thing.__dlpack__(stream=stream, max_version=(1, 0))
    except TypeError:  # an exporter from before DLPack had versions
        return thing.__dlpack__(stream=stream)


def _from_capsule(capsule: Any) -> DeviceArray:
    """Read a capsule, which is not consumed: it lets go of the tensor when it is let go itself."""
    get = ctypes.pythonapi.PyCapsule_GetPointer
    get.restype, get.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    is_valid = ctypes.pythonapi.PyCapsule_IsValid
    is_valid.restype, is_valid.argtypes = ctypes.c_int, [ctypes.py_object, ctypes.c_char_p]
    is_read_only = False
    if is_valid(capsule, b"dltensor_versioned"):
        versioned = _Versioned.from_address(get(capsule, b"dltensor_versioned"))
        if versioned.major != 1:
            raise BufferError(f"it exports DLPack {versioned.major}; version 1 is understood here")
        tensor, is_read_only = versioned.tensor, bool(versioned.flags & 1)
    else:
        tensor = _Tensor.from_address(get(capsule, b"dltensor"))
    if tensor.device_type not in (CUDA, CUDA_MANAGED):
        raise BufferError(f"it is in memory of DLPack's kind {tensor.device_type}, not on a CUDA device")
    shape = tuple(tensor.shape[i] for i in range(tensor.rank))
    strides = tuple(tensor.strides[i] for i in range(tensor.rank)) if tensor.strides else None
    name = f"{_CODES.get(tensor.code, 'unknown')}{tensor.bits}"
    name = "bool" if name == "bool8" else name
    if tensor.vector != 1 or name.startswith("unknown"):
        raise BufferError(f"its elements are of DLPack's kind {tensor.code} in vectors of {tensor.vector}")
    flags = Flags(_is_contiguous(shape, strides), not is_read_only)
    address = (tensor.data or 0) + tensor.offset
    return DeviceArray(address, shape, _storage(name), tensor.device, flags, capsule, name)


def _from_interface(thing: Any, device: int, follow: Callable[[int], None]) -> DeviceArray:
    told = thing.__cuda_array_interface__
    address, is_read_only = told["data"]
    shape: tuple[int, ...] = tuple(told["shape"])
    dtype: np.dtype[Any] = np.dtype(told["typestr"])
    strides = told.get("strides")
    steps = None if strides is None else tuple(step // dtype.itemsize for step in strides)
    if told["version"] < 3 or told.get("stream") is not None:
        follow(int(told.get("stream") or LEGACY_STREAM))
    name = "bool" if dtype == np.bool_ else dtype.name
    flags = Flags(_is_contiguous(shape, steps), not is_read_only)
    return DeviceArray(address or 0, shape, _storage(name), device, flags, thing, name)


def _storage(name: str) -> np.dtype[Any]:
    return _STORED[name] if name in _STORED else np.dtype(name)


def _is_contiguous(shape: tuple[int, ...], strides: tuple[int, ...] | None) -> bool:
    if strides is None or prod(shape) <= 1:
        return True
    expected = 1
    for extent, step in zip(reversed(shape), reversed(strides), strict=True):
        if extent != 1 and step != expected:
            return False
        expected *= extent
    return True
