"""The examples of docstrings are true."""

import doctest
import importlib
from pathlib import Path

import numpy as np
import pytest

import flcore

ROOT = Path(__file__).parents[1]
SOURCES = {"flcore": ROOT, "kernels/flcore_kernels": ROOT / "kernels", "transport/flcore_transport": ROOT / "transport"}
MODULES = sorted(
    ".".join(path.relative_to(home).with_suffix("").parts).removesuffix(".__init__")
    for package, home in SOURCES.items()
    for path in (ROOT / package).rglob("*.py")
    if "    >>> " in path.read_text()
)
EXTRAS = {"flwr", "nvflare", "torch"}
"""Packages of adapters, which need not be installed."""


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_of_a_module_are_true(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name in EXTRAS:
            pytest.skip(f"{error.name} is not installed")
        raise
    known = {"tmp_path": tmp_path, "Path": Path, "flcore": flcore, "np": np}
    result = doctest.testmod(module, extraglobs={key: value for key, value in known.items() if key not in vars(module)})
    assert not result.failed
