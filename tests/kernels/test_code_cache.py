"""Files of compiled code: read as they were written or not at all, in a directory that can be trusted or in none."""

import errno
import os
import pwd
import resource
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from flcore_kernels import code_cache

DATA = b"machine code"
NAME = "kernels-" + "0" * 20
NOBODY = 12345


pytestmark = pytest.mark.usefixtures("own_cache")


def a_file() -> Path:
    directory = code_cache.directory_for(NAME)
    assert directory is not None
    path = directory / "mean.nbc"
    code_cache.write(path, DATA)
    return path


def names_in(directory: Path) -> list[str]:
    return sorted(place.name for place in directory.iterdir())


def test_what_is_written_is_read_by_the_user_alone() -> None:
    path = a_file()
    assert code_cache.read(path) == DATA
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    code_cache.write(path, b"")
    assert code_cache.read(path) == b""
    assert names_in(path.parent) == ["mean.nbc"]


def test_any_other_bit_and_any_other_length_is_not_read() -> None:
    path = a_file()
    good = path.read_bytes()
    for place in range(8 * len(good)):
        bad = bytearray(good)
        bad[place // 8] ^= 1 << place % 8
        path.write_bytes(bad)
        assert code_cache.read(path) is None
    for length in range(len(good)):
        path.write_bytes(good[:length])
        assert code_cache.read(path) is None
    path.write_bytes(good + b"\0")
    assert code_cache.read(path) is None
    path.write_bytes(good)
    assert code_cache.read(path) == DATA


def test_a_file_of_another_kernel_or_version_is_not_read() -> None:
    path = a_file()
    assert code_cache.read(path.rename(path.with_name("fold.nbc"))) is None
    other = code_cache.directory_for("kernels-" + "1" * 20)
    assert other is not None
    assert code_cache.read((path.with_name("fold.nbc")).rename(other / "mean.nbc")) is None


def test_a_file_that_is_none_or_that_others_can_write_to_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    path = a_file()
    path.chmod(0o620)
    assert code_cache.read(path) is None
    path.chmod(0o644)
    assert code_cache.read(path) == DATA
    path.unlink()
    assert code_cache.read(path) is None
    path.mkdir()
    assert code_cache.read(path) is None
    assert code_cache.read(path / "below" / "that") is None


@contextmanager
def no_file_beyond(nbytes: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (nbytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_where_a_file_cannot_be_written_a_warning_says_why_once_and_nothing_is_left() -> None:
    path = a_file()
    with pytest.warns(RuntimeWarning, match=f"not kept in {path.parent}: File too large"), no_file_beyond(20):
        code_cache.write(path.with_name("fold.nbc"), DATA)
    with no_file_beyond(20):
        code_cache.write(path.with_name("fold.nbc"), DATA)  # a second warning would be an error
    path.with_name("a-directory.nbc").mkdir()
    with pytest.warns(RuntimeWarning, match="Is a directory"):
        code_cache.write(path.with_name("a-directory.nbc"), DATA)
    with pytest.warns(RuntimeWarning, match="Not a directory"):
        code_cache.write(path / "below.nbc", DATA)
    assert names_in(path.parent) == ["a-directory.nbc", "mean.nbc"]
    assert code_cache.read(path) == DATA


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO])
def test_a_full_or_broken_disk_costs_a_warning(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    path = a_file()

    def replace(*_: Any) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(Path, "replace", replace)
    with pytest.warns(RuntimeWarning, match=os.strerror(number)):
        code_cache.write(path, b"new")
    assert names_in(path.parent) == ["mean.nbc"]
    assert code_cache.read(path) == DATA


def test_a_directory_of_root_is_used_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """Such as an image brings: written by root, and then used by another who can read it."""
    path = a_file()
    monkeypatch.setattr(os, "getuid", lambda: NOBODY)
    of_root = os.stat_result((0o100644, 0, 0, 1, 0, 0, 0, 0, 0, 0))
    assert code_cache._trouble(of_root, path) == ""
    assert "others can write" in code_cache._trouble(os.stat_result((0o100664, 0, 0, 1, 0, 0, 0, 0, 0, 0)), path)
    of_another = os.stat_result((0o100644, 0, 0, 1, NOBODY + 1, 0, 0, 0, 0, 0))
    assert code_cache._trouble(of_another, path) == f"{path} belongs to user {NOBODY + 1}, and this is user {NOBODY}"
    if path.stat().st_uid == 0:
        assert code_cache.directory_for(NAME) == path.parent
        assert code_cache.read(path) == DATA


def test_without_a_home_a_warning_says_so_and_a_named_directory_is_used(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def nobody(uid: int) -> Any:
        raise KeyError(f"getpwuid(): uid not found: {uid}")

    monkeypatch.setattr(pwd, "getpwuid", nobody)
    for name in ("HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    assert code_cache.directory_for(NAME) == tmp_path / "kept" / NAME
    monkeypatch.delenv("FLCORE_CACHE_DIR")
    with pytest.warns(RuntimeWarning, match=r"not kept: .*home directory.*set FLCORE_CACHE_DIR"):
        assert code_cache.directory_for(NAME) is None
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert code_cache.directory_for(NAME) == tmp_path / "xdg/flcore" / NAME


def test_a_home_of_caches_that_is_relative_counts_for_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("FLCORE_CACHE_DIR")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", "caches")
    assert code_cache.directory_for(NAME) == tmp_path / ".cache/flcore" / NAME


@pytest.mark.parametrize("below", [".", "deep/below"])
def test_where_a_file_is_in_the_way_a_warning_says_so(
    below: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "a-file").write_text("")
    monkeypatch.setenv("FLCORE_CACHE_DIR", str(tmp_path / "a-file" / below))
    with pytest.warns(RuntimeWarning, match="not kept: .*a-file"):
        assert code_cache.directory_for(NAME) is None


def aged(place: Path, days: float) -> Path:
    then = time.time() - days * code_cache.DAY_S
    os.utime(place, (then, then), follow_symlinks=False)
    return place


def test_directories_that_were_not_used_for_long_are_removed(tmp_path: Path) -> None:
    path = a_file()
    root = path.parents[1]
    old = []
    for number in range(8):
        place = root / f"{'cuda' if number % 2 else 'kernels'}-{number:020x}"
        place.mkdir(exist_ok=True)
        (place / "mean.nbc").write_bytes(DATA)
        old.append(aged(place, 31 + number))
    recent = root / ("kernels-" + "b" * 20)
    recent.mkdir()
    aged(recent, 29)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "file").write_text("of another")
    (old[7] / "link").symlink_to(elsewhere)
    aged(old[7], 38)
    (root / ("kernels-" + "c" * 20)).symlink_to(elsewhere)
    aged(root / ("kernels-" + "c" * 20), 90)
    foreign = root / "kernels-of-my-own"
    foreign.mkdir()
    aged(foreign, 90)

    assert code_cache.directory_for("kernels-" + "a" * 20) is not None
    assert [place.exists() for place in old] == [True] * 2 + [False] * 6, "the newest four stay, however old"
    assert recent.exists() and foreign.exists() and (elsewhere / "file").read_text() == "of another"
    assert (root / ("kernels-" + "c" * 20)).is_symlink()


def test_a_directory_that_is_used_is_not_removed() -> None:
    path = a_file()
    aged(path.parent, 31)
    assert code_cache.directory_for(NAME) == path.parent
    assert time.time() - path.parent.stat().st_mtime < code_cache.DAY_S
    for number in range(1, 9):
        assert code_cache.directory_for(f"kernels-{number:020x}") is not None
    assert code_cache.read(path) == DATA
