"""What CuPy is asked for: driven with a stand-in for it, whose names are held to CuPy's own where that is installed."""

import sys
from functools import reduce
from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest
from flcore_kernels import Backend, OutOfDeviceMemory, backend, devices
from flcore_kernels.cuda import CudaBackend
from flcore_kernels.cuda_device import CupyDevice
from flcore_kernels.device_arrays import LEGACY_STREAM

from tests.kernels.cases import draw, finished, folded, mean, state_of
from tests.kernels.exporters import Interfaced
from tests.kernels.shim.compiled import COMPILER
from tests.kernels.shim.device import ShimDevice
from tests.kernels.stand_in import USED, stand_in_for_cupy

CPU = backend("cpu")
SIZE = 30_000


@pytest.fixture
def cupy(monkeypatch: pytest.MonkeyPatch) -> Any:
    module = stand_in_for_cupy(devices=2)
    monkeypatch.setitem(sys.modules, "cupy", module)
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


@pytest.mark.skipif(COMPILER is None, reason="the device is played by code that g++ compiles")
@pytest.mark.parametrize("accumulate", ["exact", "float32"])
def test_every_verb_goes_through_cupy(cupy: Any, accumulate: str) -> None:
    cuda: Backend = CudaBackend(CupyDevice(1, None), 1, 1 << 16)
    parts = [draw(np.random.default_rng(seed), "float32", SIZE).part for seed in range(3)]
    weights = [1.0, 2.0, 0.5]
    assert mean(cuda, parts, weights, "float32", accumulate, "float32", SIZE).tobytes() == (
        mean(CPU, parts, weights, "float32", accumulate, "float32", SIZE).tobytes()
    )
    ours, theirs = (folded(each, parts, weights, "float32", accumulate, SIZE) for each in (cuda, CPU))
    assert state_of(cuda, ours) == state_of(CPU, theirs)
    other = folded(cuda, parts[:1], [1.0], "float32", accumulate, SIZE)
    cuda.merge(ours, other)
    CPU.merge(theirs, folded(CPU, parts[:1], [1.0], "float32", accumulate, SIZE))
    assert finished(cuda, ours, "float32").tobytes() == finished(CPU, theirs, "float32").tobytes()
    assert cuda.largest(parts, "float32") == CPU.largest(parts, "float32")
    assert cuda.inspect(parts[0], "float32").squares == CPU.inspect(parts[0], "float32").squares
    named: Any = Interfaced(ShimDevice(number=1).resident(parts[0]), version=2)
    cuda.fold(cuda.total(SIZE, accumulate), [named], [1.0], "float32")
    assert [stream for _, stream in cupy.recorded] == [LEGACY_STREAM]


@pytest.mark.skipif(COMPILER is None, reason="the device is played by code that g++ compiles")
def test_a_budget_bounds_the_devices_memory_and_the_error_says_what_there_is(cupy: Any) -> None:
    devices._cuda.cache_clear()
    cuda = backend("cuda", budget_bytes=10 << 20)
    words = (
        r"a stand-in \(device 0\) does not hold 16,\d+,\d+ bytes more: 5 of 6 bytes are free, .* a budget of 10,485,760"
    )
    with pytest.raises(OutOfDeviceMemory, match=words):
        cuda.total(1 << 20, "exact")
    part = np.ones(1 << 19, np.float32)
    out = np.empty_like(part)
    cuda.mean([part] * 3, [1.0, 2.0, 3.0], out, "float32")
    assert (out == 1).all(), "pieces are smaller where the budget is"
    devices._cuda.cache_clear()
