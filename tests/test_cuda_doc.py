"""docs/cuda.md is true: its snippets are run as printed, where there is no device with a stand-in for CuPy."""

import contextlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from flcore_kernels import devices

from tests.kernels.conftest import has_device
from tests.kernels.exporters import Exporter
from tests.kernels.shim.compiled import COMPILER
from tests.kernels.shim.device import ShimDevice
from tests.kernels.stand_in import stand_in_for_cupy

DOC = (Path(__file__).parents[1] / "docs/cuda.md").read_text()
SNIPPETS = re.findall(r"```python\n(.*?)```", DOC, re.DOTALL)
SHIM = ShimDevice()


class Array(Exporter):
    """An array of the stand-in's."""

    __module__ = "cupy"
    device = contextlib.nullcontext()

    def __init__(self, values: npt.NDArray[Any]) -> None:
        super().__init__(SHIM.resident(values))


def played() -> Any:
    cupy: Any = stand_in_for_cupy(devices=1)
    cupy.asarray = lambda values, dtype=None: Array(np.asarray(values, dtype))
    cupy.arange = lambda stop, dtype: Array(np.arange(stop, dtype=dtype))
    cupy.empty = lambda shape, dtype: Array(np.zeros(shape, dtype))
    cupy.ascontiguousarray = lambda array: array
    cupy.asnumpy = lambda array: SHIM.told(array.array)
    return cupy


@pytest.fixture
def cupy(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    devices._cuda.cache_clear()
    if not has_device():
        monkeypatch.setitem(sys.modules, "cupy", played())
    devices._cuda.cache_clear()
    yield
    devices._cuda.cache_clear()


@pytest.mark.device
@pytest.mark.skipif(COMPILER is None and not has_device(), reason="needs a device, or g++ to play one")
@pytest.mark.usefixtures("cupy")
@pytest.mark.parametrize("snippet", SNIPPETS)
def test_a_snippet_prints_what_it_says(snippet: str, capsys: pytest.CaptureFixture[str]) -> None:
    exec(snippet, {})
    (said,) = re.findall(r"print\(.*\)  # (.*)", snippet)
    assert capsys.readouterr().out.strip() == said


def test_the_verbs_of_the_page_exist() -> None:
    makefile = (Path(__file__).parents[1] / "Makefile").read_text()
    for verb in re.findall(r"`make ([\w-]+)`", DOC):
        assert re.search(rf"^{verb}:", makefile, re.MULTILINE)
