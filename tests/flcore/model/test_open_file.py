"""How many models fit under a limit of open files: said by the library, and the limit raised by the command."""

import errno
import os
import resource
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from flcore import BudgetError, open_model, save
from flcore.aggregation.checkpoint_aggregation import aggregate_checkpoints
from flcore.model import open_file
from flcore.model.open_file import RESERVED_FILES, file_limits, raise_file_limit, require_files_fit
from flcore.model.stored_model import count_files


@pytest.fixture
def soft() -> Iterator[int]:
    """The soft limit of open files, which is what it was after the test."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    yield limits[0]
    resource.setrlimit(resource.RLIMIT_NOFILE, limits)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    save({"w": np.ones(3, np.float32)}, tmp_path / "x.safetensors")
    return tmp_path / "x.safetensors"


def limited(monkeypatch: pytest.MonkeyPatch, soft: int, hard: int = 1 << 20) -> None:
    """Have so many files be allowed, beside those that are open."""
    monkeypatch.setattr(open_file, "file_limits", lambda: (soft, hard))
    monkeypatch.setattr(open_file, "_open_count", lambda: 0)


def test_the_library_says_how_many_fit_and_raises_nothing(
    path: Path, monkeypatch: pytest.MonkeyPatch, soft: int
) -> None:
    limited(monkeypatch, RESERVED_FILES + 11)
    require_files_fit(*count_files([path] * 10))
    words = (
        f"11 checkpoints at once take {RESERVED_FILES + 12} open files or more, "
        f"and the limit is {RESERVED_FILES + 11}: 10 fit; "
    )
    with pytest.raises(BudgetError, match=f"{words}raise it with `ulimit -n {RESERVED_FILES + 12}`"):
        aggregate_checkpoints([path] * 11, path.with_name("out"))
    assert not path.with_name("out").exists() and resource.getrlimit(resource.RLIMIT_NOFILE)[0] == soft


def test_a_hard_limit_that_is_too_low_is_said(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limited(monkeypatch, 30, 40)
    with pytest.raises(BudgetError, match=r"12 fit; the hard limit \(`ulimit -Hn`\) is 40: ask an administrator"):
        require_files_fit(*count_files([path] * 99, base=path.with_name("absent.safetensors")))
    limited(monkeypatch, 4, 4)
    with pytest.raises(BudgetError, match=r": 0 fit; "):
        require_files_fit(*count_files([path]))


def test_every_file_of_a_model_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save({name: np.ones(3) for name in "abcde"}, tmp_path, shard_bytes=1)
    limited(monkeypatch, 5 + RESERVED_FILES + 3 * 5)
    require_files_fit(*count_files([tmp_path] * 3))
    require_files_fit(*count_files([tmp_path] * 2, base=tmp_path / "model.safetensors.index.json"))
    with pytest.raises(BudgetError, match=r"4 checkpoints .* 3 fit"):
        require_files_fit(*count_files([tmp_path] * 4))


@pytest.mark.serial
def test_a_limit_is_raised_no_further_than_needed(path: Path, soft: int) -> None:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    used = len(os.listdir("/dev/fd"))  # noqa: PTH208
    low = used + 30
    resource.setrlimit(resource.RLIMIT_NOFILE, (low, hard))
    raise_file_limit(*count_files([path] * 5))
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == (low, hard)
    with pytest.raises(BudgetError, match="100 checkpoints"):
        require_files_fit(*count_files([path] * 100))
    raise_file_limit(*count_files([path] * 100))
    raised, still = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert low < raised <= used + 101 + RESERVED_FILES and still == hard
    require_files_fit(*count_files([path] * 100))


def test_a_system_without_limits_or_one_that_keeps_its_own(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limited(monkeypatch, 10, 20)
    monkeypatch.setattr(resource, "setrlimit", lambda *_: (_ for _ in ()).throw(ValueError("not allowed")))
    raise_file_limit(*count_files([path] * 100))
    monkeypatch.undo()
    monkeypatch.setattr(resource, "getrlimit", lambda _: (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert file_limits() is None
    monkeypatch.undo()
    monkeypatch.setitem(sys.modules, "resource", None)
    assert file_limits() is None
    raise_file_limit(*count_files([path] * 100_000))
    require_files_fit(*count_files([path] * 100_000))


@pytest.mark.serial
def test_one_model_with_more_files_than_the_limit(path: Path, soft: int) -> None:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/dev/fd")) + 5, hard))  # noqa: PTH208
    with pytest.raises(
        OSError, match=r"Too many open files: raise the limit of this process with `ulimit -n`"
    ) as caught:
        kept = [open_model(path) for _ in range(50)]
        del kept
    assert caught.value.errno == errno.EMFILE and caught.value.filename == str(path)
