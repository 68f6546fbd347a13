"""Runs that are expensive to write, shared by tests that only read."""

from pathlib import Path

import pytest

from tests.flcore.reports.written_runs import many_rounds, write_run


@pytest.fixture(scope="session")
def large_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a run of 200 clients and 500 rounds."""
    return write_run(tmp_path_factory.mktemp("large") / "run", many_rounds(200, 500))
