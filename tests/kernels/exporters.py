"""Arrays of libraries that are not there: what exports memory of a device through DLPack, or the older interface."""

import ctypes
from typing import Any

import numpy as np
from flcore_kernels.device_arrays import CUDA, DeviceArray, _Tensor, _Versioned

CODES = {"i": 0, "u": 1, "f": 2, "b": 6}


class Exporter:
    """An array that speaks DLPack, of the first version or of one that has versions.

    `streams` are those that it was asked to make wait; `code` tells of other elements than its dtype does.
    """

    def __init__(
        self, array: DeviceArray, *, is_versioned: bool = False, is_read_only: bool = False, **told: Any
    ) -> None:
        self.array, self.is_versioned, self.is_read_only = array, is_versioned, is_read_only
        self.shape, self.strides = told.get("shape", array.shape), told.get("strides")
        self.dtype = np.dtype(told.get("dtype", array.dtype))
        self.code, self.bits = told.get("code", CODES[self.dtype.kind]), told.get("bits", 8 * self.dtype.itemsize)
        self.kind, self.number = told.get("kind", CUDA), told.get("device", array.device)
        self.offset, self.rank = told.get("offset", 0), told.get("rank")
        self.streams: list[Any] = []
        self._kept: list[Any] = []

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.kind, self.number

    def __dlpack__(self, *, stream: Any = None, **more: Any) -> Any:
        if more and not self.is_versioned:
            raise TypeError("__dlpack__() got an unexpected keyword argument 'max_version'")
        self.streams.append(stream)
        rank = len(self.shape) if self.rank is None else self.rank
        extents = len(self.shape)
        tensor = _Tensor(
            *(self.array.address - self.offset, self.kind, self.number, rank, self.code, self.bits, 1),
            (ctypes.c_int64 * max(1, extents))(*self.shape),
            None if self.strides is None else (ctypes.c_int64 * max(1, extents))(*self.strides),
            self.offset,
        )
        held = _Versioned(1, 0, None, None, int(self.is_read_only), tensor) if self.is_versioned else tensor
        self._kept.append(held)
        new = ctypes.pythonapi.PyCapsule_New
        new.restype, new.argtypes = ctypes.py_object, [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
        return new(ctypes.addressof(held), b"dltensor_versioned" if self.is_versioned else b"dltensor", None)


class Interfaced:
    """An array with `__cuda_array_interface__` alone."""

    def __init__(self, array: DeviceArray, version: int = 3, *, is_read_only: bool = False, **more: Any) -> None:
        self.array = array
        self.__cuda_array_interface__ = {
            "shape": array.shape,
            "typestr": array.dtype.str,
            "data": (array.address, is_read_only),
            "version": version,
            **more,
        }
