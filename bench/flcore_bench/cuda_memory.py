"""The memory of a CUDA device and its copies, by CuPy."""

from typing import Any

import cupy
import numpy.typing as npt

from flcore_bench.timing import Work

Array = npt.NDArray[Any]


class CupyMemory:
    """The current device."""

    def __init__(self) -> None:
        properties = cupy.cuda.runtime.getDeviceProperties(cupy.cuda.runtime.getDevice())
        driver = cupy.cuda.runtime.driverGetVersion()
        self.name = f"{properties['name'].decode()}, driver for CUDA {driver // 1000}.{driver % 1000 // 10}"

    def put(self, array: Array) -> Any:
        """Return a copy of an array in the device's memory."""
        return cupy.asarray(array)

    def copy(self, nbytes: int) -> Work:
        """Return the call that copies within the device's memory."""
        source, target = cupy.zeros(nbytes, cupy.uint8), cupy.zeros(nbytes, cupy.uint8)
        return lambda: self._copy(target, source.data.ptr, nbytes, cupy.cuda.runtime.memcpyDeviceToDevice)

    def upload(self, nbytes: int) -> Work:
        """Return the call that copies from page-locked memory to the device's."""
        locked, target = cupy.cuda.alloc_pinned_memory(nbytes), cupy.zeros(nbytes, cupy.uint8)
        return lambda: self._copy(target, locked.ptr, nbytes, cupy.cuda.runtime.memcpyHostToDevice)

    def _copy(self, target: Any, source: int, nbytes: int, direction: int) -> None:
        stream = cupy.cuda.get_current_stream()
        cupy.cuda.runtime.memcpyAsync(target.data.ptr, source, nbytes, direction, stream.ptr)
        stream.synchronize()
