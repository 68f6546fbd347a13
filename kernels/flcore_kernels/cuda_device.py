"""What the CUDA backend asks of a device, and how CuPy does it: the one file that imports CuPy.

The backend itself knows addresses, streams and the names of kernels. Whatever offers `Device` can stand in for CuPy,
which is how the backend is tested where there is no device.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from flcore_kernels.cuda_kernels import OPTIONS, source
from flcore_kernels.errors import BackendUnavailable, OutOfDeviceMemory

UPLOAD, DOWNLOAD = 1, 2
"""CUDA's numbers of a copy's direction."""

Bytes = npt.NDArray[np.uint8]


class Memory(Protocol):
    """Some bytes of a device, given back when this is let go of; `address` is a multiple of 256."""

    address: int


class Event(Protocol):
    """A point in a stream's work."""

    def synchronize(self) -> None:
        """Return when the stream has come there."""
        ...


class Stream(Protocol):
    """Work that a device does in order; nothing here waits for it."""

    pointer: int

    def upload(self, target: int, source: Bytes) -> None:
        """Copy page-locked bytes to an address of the device."""
        ...

    def download(self, target: Bytes, source: int) -> None:
        """Copy from an address of the device to page-locked bytes."""
        ...

    def launch(self, kernel: str, blocks: int, threads: int, arguments: tuple[Any, ...]) -> None:
        """Run a kernel, by its name; arguments are NumPy scalars of the parameters' widths."""
        ...

    def record(self) -> Event:
        """Return the point that the work has when all that was asked for is done."""
        ...

    def wait(self, event: Event) -> None:
        """Do what is asked for from now on after an event of another stream."""
        ...

    def follow(self, pointer: int) -> None:
        """Do what is asked for from now on after what was asked of somebody's stream so far."""
        ...


class Device(Protocol):
    """One device. `multiprocessors` and `threads` (of each of them) say how much it does at once."""

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
        """Return memory of the host that copies go to and come from while the processor does something else."""
        ...

    def compile(self, kernel: str) -> None:
        """Make a kernel ready."""
        ...


class CupyDevice:
    """A device by CuPy, with a memory pool of its own."""

    def __init__(self, number: int | None, budget_bytes: int | None) -> None:
        cupy = self._cupy = _import_cupy()
        try:
            count = cupy.cuda.runtime.getDeviceCount()
        except cupy.cuda.runtime.CUDARuntimeError as error:
            raise BackendUnavailable(f"there is no CUDA device that can be used: {error}") from None
        self.number = cupy.cuda.runtime.getDevice() if number is None and count else number or 0
        if self.number >= count:
            raise BackendUnavailable(f"there is no CUDA device {self.number}; this machine has {count}, counted from 0")
        self._device = cupy.cuda.Device(self.number)
        told = cupy.cuda.runtime.getDeviceProperties(self.number)
        self.name = told["name"].decode()
        self.multiprocessors, self.threads = told["multiProcessorCount"], told["maxThreadsPerMultiProcessor"]
        self._pool = cupy.cuda.MemoryPool()
        self._budget = budget_bytes
        with self._device:
            self._pool.set_limit(size=budget_bytes or 0)
        self._kernels: dict[str, Any] = {}

    def stream(self) -> "CupyStream":
        """Return a new stream, which does not wait for CUDA's default one."""
        with self._device:
            return CupyStream(self, self._cupy, self._cupy.cuda.Stream(non_blocking=True))

    def allocate(self, nbytes: int) -> "CupyMemory":
        """Return memory of our own pool."""
        with self.current():
            try:
                return CupyMemory(self._pool.malloc(nbytes))
            except self._cupy.cuda.memory.OutOfMemoryError:
                self._pool.free_all_blocks()
            try:
                return CupyMemory(self._pool.malloc(nbytes))
            except self._cupy.cuda.memory.OutOfMemoryError:
                free, total = self._cupy.cuda.runtime.memGetInfo()
        budget = "no budget" if self._budget is None else f"a budget of {self._budget:,} bytes"
        raise OutOfDeviceMemory(
            f"{self.name} (device {self.number}) does not hold {nbytes:,} bytes more: {free:,} of {total:,} bytes are "
            f"free, {self._pool.used_bytes():,} are ours, with {budget}",
            nbytes,
        )

    def page_locked(self, nbytes: int) -> Bytes:
        """Return page-locked memory."""
        with self.current():
            memory = self._cupy.cuda.PinnedMemory(nbytes)
            return np.frombuffer(self._cupy.cuda.PinnedMemoryPointer(memory, 0), np.uint8, nbytes)

    def compile(self, kernel: str) -> None:
        """Compile a kernel for this device; CuPy keeps what was compiled on disk."""
        self.kernel(kernel)

    def kernel(self, name: str) -> Any:
        """Return a kernel."""
        if name not in self._kernels:
            with self._device:
                module = self._cupy.RawModule(code=source(), options=OPTIONS, name_expressions=[name])
                self._kernels[name] = module.get_function(name)
        return self._kernels[name]

    @contextmanager
    def current(self) -> Iterator[None]:
        """Make this device the current one."""
        with self._device:
            yield


class CupyMemory:
    """Bytes of CuPy's."""

    def __init__(self, memory: Any) -> None:
        self._memory = memory
        self.address: int = memory.ptr


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

    def record(self) -> Any:
        """Return the point that the work has when all that was asked for is done."""
        with self._device.current():
            event = self._cupy.cuda.Event(disable_timing=True)
            event.record(self._stream)
            return event

    def wait(self, event: Any) -> None:
        """Do what is asked for from now on after an event."""
        with self._device.current():
            self._stream.wait_event(event)

    def follow(self, pointer: int) -> None:
        """Do what is asked for from now on after somebody's stream."""
        with self._device.current():
            event = self._cupy.cuda.Event(disable_timing=True)
            self._cupy.cuda.runtime.eventRecord(event.ptr, pointer)
            self._stream.wait_event(event)


def _import_cupy() -> Any:
    try:
        import cupy
    except ImportError as error:
        raise BackendUnavailable(
            f"backend 'cuda' needs CuPy, which is not installed here ({error}): pip install 'flcore[cuda13]' for "
            "drivers of CUDA 13, or 'flcore[cuda12]'"
        ) from None
    return cupy
