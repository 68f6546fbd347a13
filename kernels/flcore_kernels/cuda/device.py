"""The interface `Device` that the CUDA backend uses, and its implementation with CuPy, which only this file imports.

The backend itself knows addresses, streams and names of kernels. Tests without a device pass another implementation.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from flcore_kernels.cuda.compiler import CubinCache
from flcore_kernels.cuda.kernels import FILL_KERNEL
from flcore_kernels.errors import BackendUnavailable, DeviceFailed, OutOfDeviceMemory

UPLOAD, DOWNLOAD = 1, 2
"""`cudaMemcpyHostToDevice` and `cudaMemcpyDeviceToHost`."""

LEAST_CAPABILITY = (7, 0)
"""Volta. Since then, threads of a warp may be in different branches, as the two halves of a warp in our kernels are."""

LARGE_BYTES = 64 << 20
"""Memory of this size or more is returned to the device when it is freed. Less stays in the pool for the next total."""

INSTALL = "install flcore[cuda13] with a driver for CUDA 13, flcore[cuda12] with one for CUDA 12"

Bytes = npt.NDArray[np.uint8]


class Memory(Protocol):
    """Memory of a device, freed with this object. `address` is a multiple of 256."""

    address: int


class Event(Protocol):
    """A point in a stream's work."""

    def synchronize(self) -> None:
        """Wait until the stream has reached this point."""
        ...


class Stream(Protocol):
    """Work that a device does in order. Its methods enqueue work, and do not wait for it."""

    pointer: int

    def upload(self, target: int, source: Bytes) -> None:
        """Copy page-locked bytes to an address of the device."""
        ...

    def download(self, target: Bytes, source: int) -> None:
        """Copy from an address of the device to page-locked bytes."""
        ...

    def launch(self, kernel: str, blocks: int, threads: int, arguments: tuple[Any, ...]) -> None:
        """Run a kernel by its name. Arguments are NumPy scalars of the parameters' widths."""
        ...

    def record(self) -> Event:
        """Return the point at which all work that was enqueued so far is done."""
        ...

    def wait(self, event: Event) -> None:
        """Delay work that is enqueued from now on until an event of another stream."""
        ...

    def follow(self, pointer: int) -> None:
        """Delay work that is enqueued from now on until another library's stream has done what it has now."""
        ...


class Device(Protocol):
    """One device, with `multiprocessors` that each run up to `threads` threads at once."""

    number: int
    name: str
    multiprocessors: int
    threads: int

    def stream(self) -> Stream:
        """Return a new stream."""
        ...

    def allocate(self, nbytes: int) -> Memory:
        """Return memory of the device, or raise `OutOfDeviceMemory`."""
        ...

    def page_locked(self, nbytes: int) -> Bytes:
        """Return page-locked host memory: copies from and to it do not occupy the CPU."""
        ...

    def number_at(self, address: int) -> int:
        """Return the number of the device that an address is on."""
        ...

    def current(self) -> AbstractContextManager[None]:
        """Make this device the current one, as exporters expect theirs to be."""
        ...


class CupyDevice:
    """A device of CuPy's, with a memory pool of its own."""

    def __init__(self, number: int = 0, budget_bytes: int | None = None) -> None:
        cupy = self._cupy = _import_cupy()
        try:
            count = cupy.cuda.runtime.getDeviceCount()
        except cupy.cuda.runtime.CUDARuntimeError as error:
            raise BackendUnavailable(
                f"no CUDA device can be used: {error}. It needs an NVIDIA driver, and CuPy for the driver's "
                f"CUDA version ({INSTALL}); backend='cpu' works anywhere"
            ) from None
        if number >= count:
            raise BackendUnavailable(f"there is no CUDA device {number}; this machine has {count}, counted from 0")
        self.number, self._device = number, cupy.cuda.Device(number)
        properties = cupy.cuda.runtime.getDeviceProperties(number)
        self.name = properties["name"].decode()
        self.multiprocessors = properties["multiProcessorCount"]
        self.threads = properties["maxThreadsPerMultiProcessor"]
        capability = properties["major"], properties["minor"]
        if capability < LEAST_CAPABILITY:
            raise BackendUnavailable(
                f"{self.name} (device {number}) has compute capability {capability[0]}.{capability[1]}; the kernels "
                f"need {LEAST_CAPABILITY[0]}.{LEAST_CAPABILITY[1]} or higher"
            )
        self._pool, self._budget = cupy.cuda.MemoryPool(), budget_bytes
        self._kernels: dict[str, Any] = {}
        with self.current():
            if budget_bytes is not None:
                self._pool.set_limit(size=max(1, budget_bytes))
        self._code = CubinCache(cupy)
        self.kernel(FILL_KERNEL)  # an installation that cannot compile kernels fails here, not in the first fold

    def stream(self) -> "CupyStream":
        """Return a new stream, which does not wait for CUDA's default one."""
        with self.current():
            return CupyStream(self, self._cupy, self._cupy.cuda.Stream(non_blocking=True))

    def allocate(self, nbytes: int) -> "CupyMemory":
        """Return memory from the pool, or raise `OutOfDeviceMemory`."""
        with self.current():
            try:
                return CupyMemory(self._pool, self._pool.malloc(nbytes), nbytes)
            except self._cupy.cuda.memory.OutOfMemoryError:
                self._pool.free_all_blocks()
            try:
                return CupyMemory(self._pool, self._pool.malloc(nbytes), nbytes)
            except self._cupy.cuda.memory.OutOfMemoryError:
                free, total = self._cupy.cuda.runtime.memGetInfo()
                used = self._pool.used_bytes()
        budget = "no budget" if self._budget is None else f"a budget of {self._budget:,} bytes"
        raise OutOfDeviceMemory(
            f"{nbytes:,} bytes more do not fit into the memory of {self.name} (device {self.number}): {free:,} of "
            f"{total:,} bytes are free, {used:,} are used by flcore, with {budget}",
            nbytes,
        )

    def page_locked(self, nbytes: int) -> Bytes:
        """Return page-locked memory."""
        with self.current():
            memory = self._cupy.cuda.PinnedMemory(nbytes)
            return np.frombuffer(self._cupy.cuda.PinnedMemoryPointer(memory, 0), np.uint8, nbytes)

    def kernel(self, name: str) -> Any:
        """Return a kernel, compiled for this device if it was not kept, or raise `BackendUnavailable`."""
        if name not in self._kernels:
            with self.current():
                self._kernels[name] = self._code.load(name)
        return self._kernels[name]

    def number_at(self, address: int) -> int:
        """Return the number of the device that an address is on."""
        with self.current():
            return int(self._cupy.cuda.runtime.pointerGetAttributes(address).device)

    @contextmanager
    def current(self) -> Iterator[None]:
        """Make this device the current one. CUDA's errors become `DeviceFailed`."""
        try:
            with self._device:
                yield
        except self._cupy.cuda.runtime.CUDARuntimeError as error:
            raise DeviceFailed(f"{self.name} (device {self.number}): {error}") from error


class CupyMemory:
    """Memory of the pool. Large memory is returned to the device when it is freed, for other libraries."""

    def __init__(self, pool: Any, memory: Any, nbytes: int) -> None:
        self._pool, self._memory, self._nbytes = pool, memory, nbytes
        self.address: int = memory.ptr

    def __del__(self) -> None:
        self._memory = None
        if self._nbytes >= LARGE_BYTES:
            self._pool.free_all_blocks()


class CupyEvent:
    """A point in a stream's work."""

    def __init__(self, device: CupyDevice, cupy: Any, pointer: int) -> None:
        self._device = device
        self.event = cupy.cuda.Event(disable_timing=True)
        cupy.cuda.runtime.eventRecord(self.event.ptr, pointer)

    def synchronize(self) -> None:
        """Wait until the stream has reached this point."""
        with self._device.current():
            self.event.synchronize()


class CupyStream:
    """A stream of CuPy's."""

    def __init__(self, device: CupyDevice, cupy: Any, stream: Any) -> None:
        self._device, self._cupy, self._stream = device, cupy, stream
        self.pointer: int = stream.ptr

    def upload(self, target: int, source: Bytes) -> None:
        """Copy page-locked bytes to an address of the device."""
        with self._device.current():
            address = source.__array_interface__["data"][0]
            self._cupy.cuda.runtime.memcpyAsync(target, address, source.nbytes, UPLOAD, self.pointer)

    def download(self, target: Bytes, source: int) -> None:
        """Copy from an address of the device to page-locked bytes."""
        with self._device.current():
            address = target.__array_interface__["data"][0]
            self._cupy.cuda.runtime.memcpyAsync(address, source, target.nbytes, DOWNLOAD, self.pointer)

    def launch(self, kernel: str, blocks: int, threads: int, arguments: tuple[Any, ...]) -> None:
        """Run a kernel."""
        with self._device.current(), self._stream:
            self._device.kernel(kernel)((blocks,), (threads,), arguments)

    def record(self) -> CupyEvent:
        """Return the point at which all work that was enqueued so far is done."""
        with self._device.current():
            return CupyEvent(self._device, self._cupy, self.pointer)

    def wait(self, event: Any) -> None:
        """Delay work that is enqueued from now on until an event."""
        with self._device.current():
            self._stream.wait_event(event.event)

    def follow(self, pointer: int) -> None:
        """Delay work that is enqueued from now on until another library's stream has done what it has now."""
        with self._device.current():
            self._stream.wait_event(CupyEvent(self._device, self._cupy, pointer).event)


def _import_cupy() -> Any:
    try:
        import cupy
    except ImportError as error:
        raise BackendUnavailable(
            f"backend 'cuda' needs CuPy, which is not installed here ({error}): {INSTALL}"
        ) from None
    return cupy
