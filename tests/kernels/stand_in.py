"""A module that stands in for CuPy, as far as `flcore_kernels.cuda.device` uses it; its devices are the processor's."""

import contextlib
import ctypes
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
from flcore_kernels.cuda.kernels import OPTIONS, source

from tests.kernels.shim.compiled import launch, library

USED = {
    "cuda": [
        *("Device", "Event", "MemoryPool", "PinnedMemory", "PinnedMemoryPointer", "Stream"),
        *("compiler", "function", "memory", "nvrtc", "runtime"),
    ],
    "cuda.Device": ["compute_capability"],
    "cuda.Event": ["synchronize"],
    "cuda.compiler": ["CompileException", "compile_using_nvrtc"],
    "cuda.function.Module": ["get_function", "load"],
    "cuda.nvrtc": ["getVersion"],
    "cuda.MemoryPool": ["free_all_blocks", "malloc", "set_limit", "used_bytes"],
    "cuda.Stream": ["ptr", "wait_event"],
    "cuda.memory": ["OutOfMemoryError"],
    "cuda.runtime": [
        *("CUDARuntimeError", "eventRecord", "getDevice", "getDeviceCount", "getDeviceProperties", "memGetInfo"),
        *("memcpyAsync", "pointerGetAttributes"),
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

    def synchronize(self) -> None:
        assert self.ptr in RECORDED, "an event is recorded before it is waited for"


RECORDED: dict[int, int] = {}
"""The stream on which each event was recorded."""


class CompileException(Exception):
    """CuPy's name."""


def compile_using_nvrtc(
    text: str, options: tuple[str, ...], *, name_expressions: tuple[str, ...], cache_in_memory: bool
) -> tuple[bytes, dict[str, str]]:
    """Return nothing that could be run, and names from which a kernel's own can be told again."""
    assert text == source() and options == OPTIONS and cache_in_memory
    return b"compiled", {name: f"_Z{name.encode().hex()}" for name in name_expressions}


class Module:
    """Compiled code."""

    def load(self, code: bytes) -> None:
        assert code == b"compiled"

    def get_function(self, name: str) -> Any:
        entry = library(bytes.fromhex(name.removeprefix("_Z")).decode())

        def run(grid: tuple[int], block: tuple[int], arguments: tuple[Any, ...]) -> None:
            launch(entry, grid[0], block[0], arguments, [])

        return run


class Device(contextlib.nullcontext[None]):
    """A device, as far as it is asked."""

    compute_capability = "90"

    def __init__(self, number: int = 0) -> None:
        super().__init__()


def stand_in_for_cupy(devices: int | None, *, capability: tuple[int, int] = (9, 0), compiles: Any = None) -> ModuleType:
    """Return the module, with so many devices (None: without a driver) of a compute capability.

    `compiles` stands in for CuPy's compiler.
    """

    def count() -> int:
        if devices is None:
            raise CUDARuntimeError("cudaErrorInsufficientDriver: the driver is too old")
        return devices

    def copy(target: int, source: int, nbytes: int, direction: int, stream: int) -> None:
        assert direction in (1, 2) and stream
        ctypes.memmove(target, source, nbytes)

    runtime = SimpleNamespace(
        CUDARuntimeError=CUDARuntimeError,
        getDeviceCount=count,
        getDevice=lambda: 0,
        getDeviceProperties=lambda number: {
            "name": b"a stand-in",
            "major": capability[0],
            "minor": capability[1],
            "multiProcessorCount": 2 + number,
            "maxThreadsPerMultiProcessor": 1024,
        },
        memGetInfo=lambda: (5, 6),
        memcpyAsync=copy,
        eventRecord=RECORDED.__setitem__,
        pointerGetAttributes=lambda address: SimpleNamespace(device=module.device_of_pointers),
    )
    module: Any = ModuleType("cupy")
    module.device_of_pointers, module.__version__ = 0, "14"
    module.cuda = SimpleNamespace(
        runtime=runtime,
        Device=Device,
        Event=Event,
        MemoryPool=MemoryPool,
        PinnedMemory=lambda nbytes: bytearray(nbytes),
        PinnedMemoryPointer=lambda memory, offset: memory,
        Stream=Stream,
        compiler=SimpleNamespace(
            CompileException=CompileException, compile_using_nvrtc=compiles or compile_using_nvrtc
        ),
        function=SimpleNamespace(Module=Module),
        memory=SimpleNamespace(OutOfMemoryError=OutOfMemoryError),
        nvrtc=SimpleNamespace(getVersion=lambda: (13, 0)),
    )
    return module  # type: ignore[no-any-return]
