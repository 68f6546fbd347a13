"""`flcore bench kernels --backend cuda`: its rows, on a played device, and what it says where there is none."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from flcore_bench import Row, Sizes
from flcore_bench.cuda_kernels import FOLDS, device_rows
from flcore_bench.timing import Work
from flcore_kernels import devices
from flcore_kernels.cuda.backend import CudaBackend

from flcore.cli.main import main
from tests.kernels.shim.compiled import NEEDS_COMPILER
from tests.kernels.shim.device import ShimDevice

TINY = Sizes("small", 2, 2, 1 << 14, 20, (2, 5), (1_000, 5_000), 1)
ROOT = Path(__file__).parents[2]


class EmulatedMemory:
    """The played device's memory, and copies."""

    name = "a processor"

    def __init__(self, device: ShimDevice) -> None:
        self._device = device

    def put(self, array: npt.NDArray[Any]) -> Any:
        return self._device.resident(array)

    def copy(self, nbytes: int) -> Work:
        source, target = (np.zeros(nbytes, np.uint8) for _ in range(2))
        return lambda: np.copyto(target, source)

    upload = copy


@pytest.mark.device
@NEEDS_COMPILER
def test_every_row_is_measured_with_its_goal() -> None:
    device = ShimDevice()
    calls = []

    def peer(parts: list[Any], weights: list[float]) -> Work:
        assert len(parts) == len(weights) == 10
        return lambda: calls.append(1)

    rows = device_rows(TINY, CudaBackend(device, 2), EmulatedMemory(device), peer)
    assert len(rows) == len(FOLDS) + 2 and calls
    assert all(len(row.seconds) == 2 and row.bytes > 0 and row.goals and row.note for row in rows)
    assert [goal.what for goal in rows[-2].goals] == ["of the device's copy rate", "PyTorch _foreach_add_"]
    assert all(row == Row.from_json(row.to_json()) for row in rows)
    alone = device_rows(TINY, CudaBackend(device, 2), EmulatedMemory(device))
    assert "PyTorch with CUDA is not installed here" in alone[-2].note


@pytest.fixture
def no_backend() -> Iterator[None]:
    devices._cuda.cache_clear()
    yield
    devices._cuda.cache_clear()


@pytest.mark.usefixtures("no_backend")
def test_without_a_device_the_command_says_what_is_missing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "cupy", None)
    monkeypatch.setattr("sys.argv", ["flcore", "bench", "kernels", "--backend", "cuda"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 1
    assert "install flcore[cuda13] with a driver for CUDA 13" in capsys.readouterr().err
