"""What CuPy is asked for: driven with a stand-in for it, whose names are held to CuPy's own where that is installed."""

import sys
from collections.abc import Callable
from functools import reduce
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flcore_kernels import Backend, BufferMismatch, DeviceFailed, OutOfDeviceMemory, backend, code_cache, devices
from flcore_kernels.cuda.backend import CudaBackend
from flcore_kernels.cuda.compiler import CubinCache
from flcore_kernels.cuda.device import CupyDevice
from flcore_kernels.device_arrays import LEGACY_STREAM

from tests.kernels.cases import draw, finished, folded, mean, state_of
from tests.kernels.exporters import Interfaced
from tests.kernels.shim.compiled import NEEDS_COMPILER
from tests.kernels.shim.device import ShimDevice
from tests.kernels.stand_in import RECORDED, USED, CUDARuntimeError, stand_in_for_cupy

CPU = backend("cpu")
SIZE = 30_000


@pytest.fixture
def cupy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    module = stand_in_for_cupy(devices=2)
    monkeypatch.setitem(sys.modules, "cupy", module)
    monkeypatch.setenv("FLCORE_CACHE_DIR", str(tmp_path / "cache"))
    return module


def of(module: Any, dotted: str) -> Any:
    return reduce(getattr, dotted.split("."), module)


def test_the_stand_in_and_cupy_have_what_is_used_of_cupy(cupy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    modules = [cupy]
    monkeypatch.undo()
    if find_spec("cupy"):
        modules.append(__import__("cupy"))
    for module in modules:
        for owner, names in USED.items():
            missing = [name for name in names if not hasattr(of(module, owner), name) and name != "ptr"]
            assert not missing, f"{module.__name__}.{owner} has no {missing}"


@pytest.mark.device
@NEEDS_COMPILER
@pytest.mark.parametrize("accumulate", ["exact", "float32"])
def test_every_verb_goes_through_cupy(cupy: Any, accumulate: str) -> None:
    cuda: Backend = CudaBackend(CupyDevice(1, None), 1, 1 << 16)
    operands = [draw(np.random.default_rng(seed), "float32", SIZE).operand for seed in range(3)]
    weights = [1.0, 2.0, 0.5]
    assert mean(cuda, operands, weights, "float32", accumulate, "float32", SIZE).tobytes() == (
        mean(CPU, operands, weights, "float32", accumulate, "float32", SIZE).tobytes()
    )
    ours, theirs = (folded(each, operands, weights, "float32", accumulate, SIZE) for each in (cuda, CPU))
    assert state_of(cuda, ours) == state_of(CPU, theirs)
    other = folded(cuda, operands[:1], [1.0], "float32", accumulate, SIZE)
    cuda.merge(ours, other)
    CPU.merge(theirs, folded(CPU, operands[:1], [1.0], "float32", accumulate, SIZE))
    assert finished(cuda, ours, "float32").tobytes() == finished(CPU, theirs, "float32").tobytes()
    assert cuda.max_abs(operands, "float32") == CPU.max_abs(operands, "float32")
    assert cuda.inspect(operands[0], "float32") == CPU.inspect(operands[0], "float32")
    named: Any = Interfaced(ShimDevice().resident(operands[0]), version=2)
    with pytest.raises(
        BufferMismatch, match=r"operand 0 is on device 0, .* works on device 1: ask for backend\('cuda:0'\)"
    ):
        cuda.fold(cuda.total(SIZE, accumulate), [named], [1.0], "float32")
    cupy.device_of_pointers = 1
    cuda.fold(cuda.total(SIZE, accumulate), [named], [1.0], "float32")
    assert LEGACY_STREAM in RECORDED.values()


@pytest.mark.device
@NEEDS_COMPILER
def test_a_budget_bounds_the_devices_memory_and_the_error_says_what_there_is(cupy: Any) -> None:
    devices._cuda.cache_clear()
    cuda = backend("cuda", budget_bytes=10 << 20)
    words = (
        r"16,\d+,\d+ bytes more do not fit into the memory of a stand-in \(device 0\): 5 of 6 bytes are free, .*"
        r" a budget of 10,485,760"
    )
    with pytest.raises(OutOfDeviceMemory, match=words):
        cuda.total(1 << 20, "exact")
    operand = np.ones(1 << 19, np.float32)
    out = np.empty_like(operand)
    cuda.mean([operand] * 3, [1.0, 2.0, 3.0], out, "float32")
    assert (out == 1).all(), "portions are smaller where the budget is"
    devices._cuda.cache_clear()


def compiled_by(cupy: Any, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return a list that grows by each kernel that is compiled; what is loaded are the names of kernels."""
    calls: list[str] = []
    compiler = cupy.cuda.compiler.compile_using_nvrtc

    def counted(*given: Any, **more: Any) -> Any:
        calls.extend(more["name_expressions"])
        return compiler(*given, **more)

    cupy.cuda.compiler.compile_using_nvrtc = counted
    monkeypatch.setattr(cupy.cuda.function.Module, "get_function", lambda _, name: name)
    return calls


@pytest.mark.parametrize("harm", [lambda code: b"", lambda code: code[:-1], lambda code: code[:-1] + b"D"])
def test_a_damaged_file_is_compiled_anew(
    cupy: Any, harm: Callable[[bytes], bytes], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    calls = compiled_by(cupy, monkeypatch)
    name = CubinCache(cupy).load("fill")
    (path,) = (tmp_path / "cache").rglob("*.cubin")
    path.write_bytes(harm(path.read_bytes()))
    for _ in range(2):
        assert CubinCache(cupy).load("fill") == name
    assert calls == ["fill"] * 2


def test_where_no_file_can_be_kept_kernels_are_compiled_all_the_same(
    cupy: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    calls = compiled_by(cupy, monkeypatch)
    code_cache.warn_once.cache_clear()
    name = CubinCache(cupy).load("fill")
    (path,) = (tmp_path / "cache").rglob("*.cubin")
    path.unlink()
    path.mkdir()
    with pytest.warns(RuntimeWarning, match="not kept in .*: Is a directory"):
        assert CubinCache(cupy).load("fill") == name
    monkeypatch.setenv("FLCORE_CACHE_DIR", str(tmp_path / "file"))
    (tmp_path / "file").write_text("")
    with pytest.warns(RuntimeWarning, match="not kept: .*file"):
        assert CubinCache(cupy).load("fill") == name
    assert calls == ["fill"] * 3


def test_a_kept_kernel_that_the_driver_refuses_is_compiled_anew(cupy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = compiled_by(cupy, monkeypatch)
    code_cache.warn_once.cache_clear()
    name = CubinCache(cupy).load("fill")
    load = cupy.cuda.function.Module.load
    refused: list[bytes] = []

    def refuse_once(module: Any, code: bytes) -> None:
        if not refused:
            refused.append(code)
            raise RuntimeError("CUDA_ERROR_INVALID_IMAGE")
        load(module, code)

    monkeypatch.setattr(cupy.cuda.function.Module, "load", refuse_once)
    with pytest.warns(RuntimeWarning, match="compiled anew, as it cannot be loaded: CUDA_ERROR_INVALID_IMAGE"):
        assert CubinCache(cupy).load("fill") == name
    assert calls == ["fill"] * 2


@pytest.mark.device
@NEEDS_COMPILER
def test_compiled_kernels_are_kept_and_what_the_device_complains_of_is_told(cupy: Any, tmp_path: Path) -> None:
    operand, calls = np.ones(100, np.float32), []
    compiler = cupy.cuda.compiler.compile_using_nvrtc

    def counted(*given: Any, **more: Any) -> Any:
        calls.append(more["name_expressions"])
        return compiler(*given, **more)

    cupy.cuda.compiler.compile_using_nvrtc = counted
    for _ in range(2):
        CudaBackend(CupyDevice(), 1).max_abs([operand], "float32")
    assert calls == [("fill",), ("max_abs<float32>",)]
    assert len(list((tmp_path / "cache").rglob("*.cubin"))) == 2

    def broken(*_: Any) -> None:
        raise CUDARuntimeError("cudaErrorIllegalAddress")

    device = CupyDevice()
    cuda = CudaBackend(device, 1)
    cupy.cuda.runtime.memcpyAsync = broken
    with pytest.raises(DeviceFailed, match=r"a stand-in \(device 0\): cudaErrorIllegalAddress"):
        cuda.max_abs([operand], "float32")
