"""Backends by name: which there are, which is taken for data that is somewhere, and what is imported with them."""

import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from flcore_kernels import BackendUnavailable, backend, devices

from tests.kernels.exporters import Exporter
from tests.kernels.shim.device import ShimDevice
from tests.kernels.stand_in import stand_in_for_cupy


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """No backend of a device, no directory and no warning is left over from before, or to what comes after."""
    monkeypatch.setenv("FLCORE_CACHE_DIR", str(tmp_path))
    for cached in (devices._cuda, devices._warned):
        cached.cache_clear()
    yield
    for cached in (devices._cuda, devices._warned):
        cached.cache_clear()


def there() -> Any:
    return Exporter(ShimDevice().resident(np.zeros(3)))


@pytest.mark.parametrize("name", ["rocm", "cuda:", "cuda:x", "CUDA", "", "cpu:0", "cuda:-1", "cuda:99999"])
def test_a_name_that_is_none_is_refused_with_those_that_are(name: str) -> None:
    with pytest.raises(BackendUnavailable, match="does not exist; expected 'auto', 'cpu', 'cuda' or 'cuda:1'"):
        backend(name)


def test_a_backend_is_made_once() -> None:
    assert backend("cpu") is backend("auto") is backend("auto", like=np.zeros(3)) is backend("cpu", budget_bytes=5)
    assert backend("cpu", threads=2) is not backend("cpu")


def test_cuda_without_cupy_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cupy", None)
    with pytest.raises(BackendUnavailable, match=r"needs CuPy, .*: install flcore\[cuda13\] with"):
        backend("cuda")


def test_cuda_without_a_device_or_beyond_those_there_are_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cupy", stand_in_for_cupy(devices=None))
    with pytest.raises(BackendUnavailable, match=r"can be used: cudaErrorInsufficientDriver.* NVIDIA driver, and"):
        backend("cuda")
    monkeypatch.setitem(sys.modules, "cupy", stand_in_for_cupy(devices=0))
    with pytest.raises(BackendUnavailable, match="no CUDA device 0; this machine has 0"):
        backend("cuda")
    monkeypatch.setitem(sys.modules, "cupy", stand_in_for_cupy(devices=2))
    with pytest.raises(BackendUnavailable, match="no CUDA device 2; this machine has 2, counted from 0"):
        backend("cuda:2")


def test_a_device_that_is_too_old_or_cannot_be_compiled_for_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cupy", stand_in_for_cupy(devices=1, capability=(6, 1)))
    with pytest.raises(
        BackendUnavailable, match=r"a stand-in \(device 0\) has compute capability 6.1; .* 7.0 or higher"
    ):
        backend("cuda")

    def no_nvrtc(*_: Any, **__: Any) -> Any:
        raise RuntimeError("libnvrtc.so was not found")

    monkeypatch.setitem(sys.modules, "cupy", stand_in_for_cupy(devices=1, compiles=no_nvrtc))
    with pytest.raises(BackendUnavailable, match=r"cannot be compiled: libnvrtc.so was not found. That needs NVRTC"):
        backend("cuda")
    with pytest.warns(RuntimeWarning, match="copied to the CPU and combined there: CUDA kernels cannot be compiled"):
        assert backend("auto", like=there()) is backend("cpu")


def test_auto_goes_where_the_data_is(monkeypatch: pytest.MonkeyPatch) -> None:
    cupy: ModuleType = stand_in_for_cupy(devices=2)
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    assert backend("auto", like=there()).name == "cuda"
    assert backend("auto", like=there()) is backend("cuda:0") is backend("cuda") is not backend("cuda:1")
    assert backend("auto", like=np.zeros(3)).name == "cpu"


def test_auto_falls_back_with_one_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cupy", None)
    with pytest.warns(RuntimeWarning, match="copied to the CPU and combined there: backend 'cuda' needs CuPy"):
        assert backend("auto", like=there()) is backend("cpu")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert backend("auto", like=there()) is backend("cpu")


def test_the_cuda_backend_pulls_in_neither_cupy_nor_numba_before_there_is_a_device() -> None:
    program = "import sys, flcore_kernels.cuda.backend; print(*{'cupy', 'numba', 'llvmlite'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, check=True)
    assert done.stdout.split() == []
