"""Space, file system, rate, and the kernel cache: each check passes and fails."""

import errno
import itertools
import os
from functools import partial
from pathlib import Path

import pytest
from flcore_kernels import CachedCode, cached_kernels, code_cache

from flcore.doctor import disk
from flcore.doctor.disk import check_file_system, check_space, check_write_rate
from flcore.doctor.kernel_cache import check_kernel_cache
from flcore.doctor.result import run_checks


@pytest.mark.parametrize(
    ("free", "shown", "outcome"),
    [(20 << 30, "21.5 GB", "ok"), (2 << 30, "2.15 GB", "warning"), (1 << 20, "1.05 MB", "failed")],
)
def test_space(free: int, shown: str, outcome: str, tmp_path: Path) -> None:
    found = check_space(tmp_path / "not/there/yet", free)
    assert found.outcome == outcome and f"{shown} are free in {tmp_path}" in found.found


def test_the_space_of_this_disk_is_read(tmp_path: Path) -> None:
    assert f"are free in {tmp_path}" in check_space(tmp_path).found


def test_file_system(tmp_path: Path) -> None:
    mounts = tmp_path / "mounts"
    mounts.write_text("/dev/sda / ext4 rw 0 0\n")
    assert check_file_system(tmp_path, mounts).outcome == "ok"
    mounts.write_text(f"/dev/sda / ext4 rw 0 0\nserver:/x {tmp_path} nfs4 rw 0 0\n")
    found = check_file_system(tmp_path, mounts)
    assert found.outcome == "warning" and "nfs4" in found.found and "give another directory" in found.advice


def test_the_rate_of_this_disk_is_measured_and_the_file_removed(tmp_path: Path) -> None:
    found = check_write_rate(tmp_path / "run")
    assert found.outcome in ("ok", "warning") and "MB/s, synced" in found.found
    assert not list(tmp_path.iterdir())


def test_the_measurement_is_bounded_in_bytes_and_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk, "MAX_WRITTEN_BYTES", 7 << 20)
    assert "7 MiB in 0.00 s" in check_write_rate(tmp_path, lambda: 0.0).found, "1, 2 and 4 MiB, without a time"
    now = itertools.count(0.0, 0.6)
    assert "3 MiB in 1.80 s" in check_write_rate(tmp_path, lambda: next(now)).found, (
        "at 0.6 s it goes on, at 1.2 s it ends"
    )


def test_a_slow_disk_is_a_warning(tmp_path: Path) -> None:
    now = itertools.count(0.0, 2.0)
    found = check_write_rate(tmp_path, lambda: next(now))
    assert (found.outcome, found.found) == ("warning", "0 MB/s, synced: 1 MiB in 4.00 s")
    assert "--durability memory" in found.advice


def test_a_disk_that_takes_nothing_has_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    found = check_write_rate(tmp_path)
    assert (found.outcome, found.found) == (
        "failed", f"{tmp_path} cannot be written to: no space left on device",
    )  # fmt: skip
    assert not list(tmp_path.iterdir())


def test_kernels_that_are_compiled_missing_and_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NUMBA_DISABLE_JIT", raising=False)
    monkeypatch.setenv("FLCORE_CACHE_DIR", str(tmp_path))
    found = check_kernel_cache()
    assert found.outcome == "warning" and "flcore warm" in found.advice
    cached = cached_kernels()
    assert cached is not None
    for name in ("one", "two"):
        code_cache.write(cached.directory / f"{name}.nbc", b"compiled")
    found = check_kernel_cache()
    assert found.outcome == "ok" and found.found.startswith("2 compiled kernels, 0.0 MB, in ")
    (cached.directory / "one.nbc").write_bytes((cached.directory / "one.nbc").read_bytes()[:-1])
    found = check_kernel_cache()
    assert found.outcome == "warning" and "1 of 2 compiled kernels" in found.found and "one.nbc" in found.found


def test_an_empty_cache_that_cannot_be_written_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NUMBA_DISABLE_JIT", raising=False)
    found = check_kernel_cache(lambda: CachedCode(tmp_path, 0, 0, (), is_writable=False))
    assert found.outcome == "warning" and "cannot be written to" in found.found and "FLCORE_CACHE_DIR" in found.advice


def test_a_cache_that_cannot_be_used_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NUMBA_DISABLE_JIT", raising=False)
    tmp_path.chmod(0o777)
    monkeypatch.setenv("FLCORE_CACHE_DIR", str(tmp_path))
    found = check_kernel_cache()
    assert found.outcome == "warning" and "others can write to" in found.found and "FLCORE_CACHE_DIR" in found.advice


def test_kernels_that_must_not_be_compiled_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NUMBA_DISABLE_JIT", "1")
    assert check_kernel_cache().outcome == "failed"


def test_a_file_in_the_place_of_a_directory_has_failed(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to("loop")
    for name in ("file", "file/below", "pipe", "loop"):
        for check in (disk.check_space, disk.check_write_rate):
            [result] = run_checks([("disk", partial(check, tmp_path / name))])
            place = tmp_path / name.partition("/")[0]
            assert (result.outcome, result.found) == ("failed", f"{place}: Not a directory"), name
            assert result.advice == "give another path, or correct this one"
