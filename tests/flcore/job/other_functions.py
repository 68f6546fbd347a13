"""Functions of another module, for test_functions."""

from typing import Any


def double(array: Any) -> Any:
    return 2 * array


def step() -> None:
    pass
