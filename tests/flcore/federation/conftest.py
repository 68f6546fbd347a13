"""A federation of a test, which ends with it."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.flcore.federation.small_federation import Federation


@pytest.fixture
def federation_in(tmp_path: Path, kernels: None) -> Iterator[Callable[..., Federation]]:
    """Return a function that starts a federation with settings."""
    made: list[Federation] = []

    def start(**settings: Any) -> Federation:
        made.append(Federation(tmp_path / "federation", **settings))
        return made[-1]

    yield start
    for federation in made:
        federation.close()


@pytest.fixture
def federation(federation_in: Callable[..., Federation]) -> Federation:
    return federation_in()
