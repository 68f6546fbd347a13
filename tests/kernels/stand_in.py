"""A module that stands in for CuPy, as far as `flcore_kernels.cuda_device` uses it; its devices are the processor's."""

import contextlib
import ctypes
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np

from tests.kernels.shim.compiled import launch, library

USED = {
    "RawModule": ["get_function"],
    "cuda": ["Device", "Event", "MemoryPool", "PinnedMemory", "PinnedMemoryPointer", "Stream", "memory", "runtime"],
    "cuda.Event": ["record", "synchronize"],
    "cuda.MemoryPool": ["free_all_blocks", "malloc", "set_limit", "used_bytes"],
    "cuda.Stream": ["ptr", "wait_event"],
    "cuda.memory": ["OutOfMemoryError"],
    "cuda.runtime": [
        *("CUDARuntimeError", "eventRecord", "getDevice", "getDeviceCount", "getDeviceProperties", "memGetInfo"),
        "memcpyAsync",
    ],
}
"""What is used of CuPy: a test holds the stand-in, and CuPy itself where it is installed, to it."""


class CUDARuntimeError(RuntimeError):
    """CuPy's name."""


class OutOfMemoryError(MemoryError):
    """CuPy's name."""


class MemoryPool:
    """A pool that counts."""

    def __init__(self) -> None:
        self.limit, self.held = 0, 0

    def set_limit(self, *, size: int) -> None:
        self.limit = size

    def malloc(self, nbytes: int) -> Any:
        if self.limit and self.held + nbytes > self.limit:
            raise OutOfMemoryError(f"{nbytes}")
        self.held += nbytes
        room = np.full(nbytes + 256, 0xFF, np.uint8)
        return SimpleNamespace(ptr=room.ctypes.data + -room.ctypes.data % 256, room=room)

    def free_all_blocks(self) -> None:
        """Nothing is kept."""

    def used_bytes(self) -> int:
        return self.held


class Stream(contextlib.nullcontext[None]):
    """A stream that does everything at once."""

    def __init__(self, *, non_blocking: bool) -> None:
        super().__init__()
        assert non_blocking
        self.ptr = id(self)
        self.waited: list[Any] = []

    def wait_event(self, event: Any) -> None:
        self.waited.append(event)


class Event:
    """A point that is over."""

    def __init__(self, *, disable_timing: bool) -> None:
        assert disable_timing
        self.ptr = id(self)
        self.streams: list[Any] = []

    def record(self, stream: Stream) -> None:
        self.streams.append(stream)

    def synchronize(self) -> None:
        assert self.streams, "an event is recorded before it is waited for"


class RawModule:
    """Sources, compiled when a kernel is asked for."""

    def __init__(self, *, code: str, options: tuple[str, ...], name_expressions: list[str]) -> None:
        assert "__global__" in code and "--fmad=false" in options
        self.names = name_expressions

    def get_function(self, name: str) -> Any:
        assert name in self.names
        entry = library(name)

        def run(grid: tuple[int], block: tuple[int], arguments: tuple[Any, ...]) -> None:
            launch(entry, grid[0], block[0], arguments, [])

        return run


def stand_in_for_cupy(devices: int | None) -> ModuleType:
    """Return the module, with so many devices; None: without a driver."""

    def count() -> int:
        if devices is None:
            raise CUDARuntimeError("cudaErrorInsufficientDriver: the driver is too old")
        return devices

    def copy(target: int, source: int, nbytes: int, direction: int, stream: int) -> None:
        assert direction in (1, 2) and stream
        ctypes.memmove(target, source, nbytes)

    recorded: list[tuple[int, int]] = []
    runtime = SimpleNamespace(
        CUDARuntimeError=CUDARuntimeError,
        getDeviceCount=count,
        getDevice=lambda: 0,
        getDeviceProperties=lambda number: {
            "name": b"a stand-in",
            "multiProcessorCount": 2 + number,
            "maxThreadsPerMultiProcessor": 1024,
        },
        memGetInfo=lambda: (5, 6),
        memcpyAsync=copy,
        eventRecord=lambda event, stream: recorded.append((event, stream)),
    )
    module: Any = ModuleType("cupy")
    module.RawModule, module.recorded = RawModule, recorded
    module.cuda = SimpleNamespace(
        runtime=runtime,
        Device=lambda number: contextlib.nullcontext(number),
        Event=Event,
        MemoryPool=MemoryPool,
        PinnedMemory=lambda nbytes: bytearray(nbytes),
        PinnedMemoryPointer=lambda memory, offset: memory,
        Stream=Stream,
        memory=SimpleNamespace(OutOfMemoryError=OutOfMemoryError),
    )
    return module  # type: ignore[no-any-return]
