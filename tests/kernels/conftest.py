"""The backends that the suite runs on: the CPU, the CUDA backend on a device that the processor plays, and a real one.

Where there is a device, everything is done twice: with what lies in the host's memory, which goes there in portions,
and with what is on the device already.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest
from flcore_kernels import Backend, BackendUnavailable, backend, code_cache
from flcore_kernels.cuda.backend import CudaBackend

from tests.kernels.resident import Resident
from tests.kernels.shim.compiled import EMULATED
from tests.kernels.shim.device import ShimDevice

PORTION_BYTES = 48 << 10
"""Small enough that most cases take several turns of the ring."""


def why_no_device() -> str:
    """Return why there is no CUDA device to test on; nothing where there is one."""
    try:
        backend("cuda")
    except BackendUnavailable as error:
        return str(error)
    return ""


def has_device() -> bool:
    """Whether there is a CUDA device, and CuPy."""
    return not why_no_device()


def pytest_collection_modifyitems(config: pytest.Config) -> None:
    """Say what is missing where a device was asked for."""
    if config.option.markexpr == "gpu" and (reason := why_no_device()):
        raise pytest.UsageError(reason)


BACKENDS = [
    "cpu",
    *(pytest.param(f"shim, {where}", marks=EMULATED) for where in ("in portions", "resident")),
    *(pytest.param(f"cuda, {where}", marks=pytest.mark.gpu) for where in ("in portions", "resident") if has_device()),
]


@pytest.fixture(scope="session")
def shim() -> ShimDevice:
    """The device that the processor plays."""
    return ShimDevice()


@pytest.fixture(scope="session", params=BACKENDS)
def device(request: pytest.FixtureRequest) -> Iterator[Backend]:
    """A backend."""
    name, _, where = request.param.partition(", ")
    if name == "cpu":
        yield backend("cpu")
        return
    if name == "cuda":
        yield Resident.on_cuda() if where == "resident" else backend("cuda")
        return
    shim = request.getfixturevalue("shim")
    played = CudaBackend(shim, 2, PORTION_BYTES)
    yield Resident(played, shim.resident, shim.told) if where == "resident" else played


@pytest.fixture
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Keep compiled code in a directory of the test's own; warnings are given once more."""
    monkeypatch.setenv("FLCORE_CACHE_DIR", str(tmp_path / "kept"))
    code_cache.warn_once.cache_clear()
    yield
    code_cache.warn_once.cache_clear()
