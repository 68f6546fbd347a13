"""A federation's authority, and the time."""

from datetime import UTC, datetime
from pathlib import Path

import pytest

from flcore.identity.authority import Authority

TODAY = datetime(2030, 6, 1, 12, tzinfo=UTC)


@pytest.fixture
def now() -> datetime:
    return TODAY


@pytest.fixture
def authority(tmp_path: Path, now: datetime) -> Authority:
    return Authority.create(tmp_path / "certs", "hospitals", ["fl.example.org", "10.0.0.7"], now=now)


@pytest.fixture
def other(tmp_path: Path, now: datetime) -> Authority:
    """An authority of another federation, of the same name."""
    return Authority.create(tmp_path / "others", "hospitals", ["fl.example.org"], now=now)
