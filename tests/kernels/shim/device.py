"""`flcore_kernels.cuda.device.Device`, played by the processor.

Streams do nothing until somebody waits, so that what must be waited for and is not shows: a portion filled anew too
early is copied as it is then, a kernel that does not wait for a copy reads what was there before.
"""

import contextlib
import ctypes
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from flcore_kernels import OutOfDeviceMemory
from flcore_kernels.cuda.device import Event
from flcore_kernels.device_arrays import DeviceArray, Flags

from tests.kernels.shim.compiled import launch, library

Bytes = npt.NDArray[np.uint8]
GUARD = 256
MARK = 0xA5


class ShimMemory:
    """Bytes of the device, with marks on both sides that nothing may write over."""

    def __init__(self, device: "ShimDevice", nbytes: int) -> None:
        self.nbytes = nbytes
        self._room = np.full(nbytes + 3 * GUARD, MARK, np.uint8)
        start = -self._room.ctypes.data % GUARD + GUARD
        self.address = self._room.ctypes.data + start
        self._before, self.bytes = self._room[:start], self._room[start : start + nbytes]
        self._after = self._room[start + nbytes :]
        self.bytes[:] = 0xFF  # a NaN, or -1: nothing that could pass for a zero
        weakref.finalize(self, device.give_back, nbytes)

    def require_marks(self) -> None:
        """Fail if something was written beside these bytes."""
        assert (self._before == MARK).all(), "something was written before memory of the device"
        assert (self._after == MARK).all(), "something was written behind memory of the device"


@dataclass
class ShimEvent:
    """A point in a stream's work."""

    stream: "ShimStream"
    count: int

    def synchronize(self) -> None:
        """Have the stream come there."""
        self.stream.work_until(self.count)


class ShimStream:
    """Work that is put off until somebody waits for it."""

    def __init__(self, device: "ShimDevice", pointer: int) -> None:
        self.device, self.pointer = device, pointer
        self._waiting: list[Callable[[], None]] = []
        self._done = 0

    def upload(self, target: int, source: Bytes) -> None:
        """See `Stream`."""
        self.device.require_locked(source)
        self._ask(lambda: ctypes.memmove(self.device.within(target, source.nbytes), source.ctypes.data, source.nbytes))

    def download(self, target: Bytes, source: int) -> None:
        """See `Stream`."""
        self.device.require_locked(target)
        self._ask(lambda: ctypes.memmove(target.ctypes.data, self.device.within(source, target.nbytes), target.nbytes))

    def launch(self, kernel: str, blocks: int, threads: int, arguments: tuple[Any, ...]) -> None:
        """See `Stream`."""
        assert 1 <= blocks <= self.device.multiprocessors * (self.device.threads // threads)
        assert all(isinstance(argument, np.generic) for argument in arguments)
        entry = library(kernel)
        self.device.launched.append((kernel, blocks))

        def run() -> None:
            launch(entry, blocks, threads, arguments, self.device.ranges())
            self.device.require_marks()

        self._ask(run)

    def record(self) -> ShimEvent:
        """See `Stream`."""
        return ShimEvent(self, self._done + len(self._waiting))

    def wait(self, event: Event) -> None:
        """See `Stream`."""
        self._ask(event.synchronize)

    def follow(self, pointer: int) -> None:
        """See `Stream`."""
        self.device.followed.append(pointer)

    def work_until(self, count: int) -> None:
        """Do what was asked for, up to a point."""
        while self._done < count:
            self._done += 1
            self._waiting.pop(0)()

    def _ask(self, work: Callable[[], Any]) -> None:
        self._waiting.append(work)


@dataclass
class ShimDevice:
    """A small device: few threads at once, so that kernels walk; `budget` bytes of memory."""

    number: int = 0
    name: str = "a processor that plays a device"
    multiprocessors: int = 2
    threads: int = 1024
    budget: int = 1 << 32
    used: int = 0
    peak: int = 0
    launched: list[tuple[str, int]] = field(default_factory=list)
    followed: list[int] = field(default_factory=list)
    locked: list[tuple[int, int]] = field(default_factory=list)
    memories: "weakref.WeakSet[ShimMemory]" = field(default_factory=weakref.WeakSet)
    streams: int = 0

    def stream(self) -> ShimStream:
        """See `Device`."""
        self.streams += 1
        return ShimStream(self, 1000 + self.streams)

    def allocate(self, nbytes: int) -> ShimMemory:
        """See `Device`."""
        if self.used + nbytes > self.budget:
            raise OutOfDeviceMemory(f"{self.name} does not hold {nbytes:,} bytes more", nbytes)
        self.used += nbytes
        self.peak = max(self.peak, self.used)
        memory = ShimMemory(self, nbytes)
        self.memories.add(memory)
        return memory

    def give_back(self, nbytes: int) -> None:
        """Count bytes out."""
        self.used -= nbytes

    def page_locked(self, nbytes: int) -> Bytes:
        """See `Device`."""
        memory = np.full(nbytes, 0xFF, np.uint8)
        here = (memory.ctypes.data, memory.ctypes.data + nbytes)
        self.locked.append(here)
        weakref.finalize(memory, self.locked.remove, here)
        return memory

    def number_at(self, address: int) -> int:
        """See `Device`."""
        return self.number

    def current(self) -> contextlib.AbstractContextManager[None]:
        """See `Device`."""
        return contextlib.nullcontext()

    def require_locked(self, array: Bytes) -> None:
        """Fail unless an array is in page-locked memory."""
        first = array.ctypes.data
        assert any(low <= first and first + array.nbytes <= high for low, high in self.locked), "not page-locked"

    def within(self, address: int, nbytes: int) -> int:
        """Return an address, or fail unless the bytes there are the device's."""
        assert any(low <= address and address + nbytes <= high for low, high in self.ranges()), "not on the device"
        return address

    def ranges(self) -> list[tuple[int, int]]:
        """Return where the device's memory is."""
        return [(memory.address, memory.address + memory.nbytes) for memory in self.memories]

    def require_marks(self) -> None:
        """Fail if something was written beside the device's memory."""
        for memory in self.memories:
            memory.require_marks()

    def resident(self, array: npt.NDArray[Any]) -> DeviceArray:
        """Return a copy of an array in the device's memory, an element beside where vectors could be read."""
        aside = array.dtype.itemsize
        memory = self.allocate(aside + array.nbytes)
        memory.bytes[aside:] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        flags = Flags(array.flags.c_contiguous, array.flags.writeable)
        return DeviceArray(memory.address + aside, array.shape, array.dtype, self.number, flags, memory)

    def told(self, array: DeviceArray) -> npt.NDArray[Any]:
        """Return a copy of what a resident array holds."""
        start = array.address - array.owner.address
        held = array.owner.bytes[start : start + array.nbytes].tobytes()
        return np.frombuffer(held, array.dtype).reshape(array.shape)
