"""What the CUDA backend asks of a device, and how CuPy does it: the one file of the kernels that imports CuPy.

The backend itself knows addresses, streams and the names of kernels. Whatever offers `Device` can stand in for CuPy,
which is how the backend is tested where there is no device.
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
"""CUDA's numbers of a copy's direction."""

LEAST_CAPABILITY = (7, 0)
"""Since Volta, threads of a warp go their own ways, as the halves of ours do."""

MUCH = 64 << 20
"""Bytes that are not kept for the next total, but given back."""

INSTALL = "install flcore[cuda13] with a driver for CUDA 13, flcore[cuda12] with one for CUDA 12"

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

    def number_at(self, address: int) -> int:
        """Return the number of the device that an address is on."""
        ...

    def current(self) -> AbstractContextManager[None]:
        """Make this device the current one, as exporters expect theirs to be."""
        ...


class CupyDevice:
    """A device by CuPy, with a memory pool of its own."""

    def __init__(self, number: int = 0, budget_bytes: int | None = None) -> None:
        cupy = self._cupy = _import_cupy()
        try:
            count = cupy.cuda.runtime.getDeviceCount()
        except cupy.cuda.runtime.CUDARuntimeError as error:
            raise BackendUnavailable(
                f"there is no CUDA device that can be used: {error}. It takes an NVIDIA driver, and CuPy for its CUDA "
                f"({INSTALL}); backend='cpu' works anywhere"
            ) from None
        if number >= count:
            raise BackendUnavailable(f"there is no CUDA device {number}; this machine has {count}, counted from 0")
        self.number, self._device = number, cupy.cuda.Device(number)
        told = cupy.cuda.runtime.getDeviceProperties(number)
        self.name = told["name"].decode()
        self.multiprocessors, self.threads = told["multiProcessorCount"], told["maxThreadsPerMultiProcessor"]
        if (told["major"], told["minor"]) < LEAST_CAPABILITY:
            raise BackendUnavailable(
                f"{self.name} (device {number}) has compute capability {told['major']}.{told['minor']}; the kernels "
                f"take {LEAST_CAPABILITY[0]}.{LEAST_CAPABILITY[1]} or more"
            )
        self._pool, self._budget = cupy.cuda.MemoryPool(), budget_bytes
        self._kernels: dict[str, Any] = {}
        with self.current():
            if budget_bytes is not None:
                self._pool.set_limit(size=max(1, budget_bytes))
        self._code = CubinCache(cupy)
        self.kernel(FILL_KERNEL)  # an installation that cannot compile is told now

    def stream(self) -> "CupyStream":
        """Return a new stream, which does not wait for CUDA's default one."""
        with self.current():
            return CupyStream(self, self._cupy, self._cupy.cuda.Stream(non_blocking=True))

    def allocate(self, nbytes: int) -> "CupyMemory":
        """Return memory of our own pool."""
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
            f"{self.name} (device {self.number}) does not hold {nbytes:,} bytes more: {free:,} of {total:,} bytes are "
            f"free, {used:,} are ours, with {budget}",
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
        """Make this device the current one; what CUDA has to complain of is a `DeviceFailed`."""
        try:
            with self._device:
                yield
        except self._cupy.cuda.runtime.CUDARuntimeError as error:
            raise DeviceFailed(f"{self.name} (device {self.number}): {error}") from error


class CupyMemory:
    """Bytes of the pool; when much is let go of, the pool gives it back to the device, and to others."""

    def __init__(self, pool: Any, memory: Any, nbytes: int) -> None:
        self._pool, self._memory, self._nbytes = pool, memory, nbytes
        self.address: int = memory.ptr

    def __del__(self) -> None:
        self._memory = None
        if self._nbytes >= MUCH:
            self._pool.free_all_blocks()


class CupyEvent:
    """A point in a stream's work."""

    def __init__(self, device: CupyDevice, cupy: Any, pointer: int) -> None:
        self._device = device
        self.event = cupy.cuda.Event(disable_timing=True)
        cupy.cuda.runtime.eventRecord(self.event.ptr, pointer)

    def synchronize(self) -> None:
        """Return when the stream has come there."""
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
        """Return the point that the work has when all that was asked for is done."""
        with self._device.current():
            return CupyEvent(self._device, self._cupy, self.pointer)

    def wait(self, event: Any) -> None:
        """Do what is asked for from now on after an event."""
        with self._device.current():
            self._stream.wait_event(event.event)

    def follow(self, pointer: int) -> None:
        """Do what is asked for from now on after somebody's stream."""
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
