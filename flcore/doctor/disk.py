"""The disk of a directory: its free space, its file system, and the rate at which it takes synced writes."""

import errno
import os
import secrets
import time
from collections.abc import Callable
from pathlib import Path

from flcore.doctor.result import CheckResult
from flcore.errors import JobError
from flcore.number_text import bytes_text
from flcore.server.file_systems import MOUNTS, require_local_file_system

LEAST_FREE_BYTES, FEW_FREE_BYTES = 1 << 30, 10 << 30
"""Less than the first is a failure, less than the second a warning."""

MAX_WRITTEN_BYTES, MAX_WRITE_S = 256 << 20, 1.0
"""Where the measurement of the rate ends. A part that has begun is written to its end."""

FIRST_PART_BYTES, LARGEST_PART_BYTES = 1 << 20, 32 << 20
"""Each part is synced, and is twice as large as the one before: so a slow disk is measured in about a second, too."""

SLOW_BYTES_PER_S = 50e6


def check_space(directory: Path, free_bytes: int | None = None) -> CheckResult:
    """Check the free space of a directory's disk.

    Args:
        directory: The directory, or one that will be created.
        free_bytes: The free space. Default: None, as the file system says.
    """
    place = existing_parent(directory)
    found = os.statvfs(place)
    free = found.f_bavail * found.f_frsize if free_bytes is None else free_bytes
    text = f"{bytes_text(free)} are free in {place}"
    if free >= FEW_FREE_BYTES:
        return CheckResult("disk space", "ok", text)
    advice = "free space, or give another directory: a run keeps its models, and updates if memory is short"
    return CheckResult("disk space", "failed" if free < LEAST_FREE_BYTES else "warning", text, advice)


def check_file_system(directory: Path, mounts: Path = MOUNTS) -> CheckResult:
    """Check that a directory is not on a network file system."""
    try:
        require_local_file_system(directory, mounts)
    except JobError as error:
        found, _, advice = str(error).partition(". ")
        return CheckResult("file system", "warning", found, advice[:1].lower() + advice[1:])
    return CheckResult("file system", "ok", f"{existing_parent(directory)} is not on a network file system")


def check_write_rate(directory: Path, clock: Callable[[], float] = time.monotonic) -> CheckResult:
    """Measure the rate of synced writes, with a file of at most 256 MiB that is removed.

    Args:
        directory: The directory, or one that will be created.
        clock: Seconds that never go back.
    """
    name, place = "disk rate", existing_parent(directory)
    path = place / f".flcore-doctor-{secrets.token_hex(4)}"
    try:
        written, elapsed_s = _write(path, clock)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        return CheckResult(name, "failed", f"{place} cannot be written to: {reason}", "give a directory of your own")
    rate = written / max(elapsed_s, 1e-9)
    found = f"{rate / 1e6:,.0f} MB/s, synced: {written >> 20} MiB in {elapsed_s:.2f} s"
    if rate >= SLOW_BYTES_PER_S:
        return CheckResult(name, "ok", found)
    advice = "receipts wait for this disk: give a directory on a faster one, or --durability memory"
    return CheckResult(name, "warning", found, advice)


def _write(path: Path, clock: Callable[[], float]) -> tuple[int, float]:
    """Write and sync parts of random bytes. Return the bytes and the seconds."""
    part, written, nbytes = os.urandom(LARGEST_PART_BYTES), 0, FIRST_PART_BYTES
    free = os.statvfs(path.parent)
    most = min(MAX_WRITTEN_BYTES, free.f_bavail * free.f_frsize // 2)
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        begun = clock()
        while not written or (written + nbytes <= most and clock() - begun < MAX_WRITE_S):
            left = memoryview(part)[:nbytes]
            while left:
                left = left[os.write(file, left) :]
            os.fsync(file)
            written, nbytes = written + nbytes, min(2 * nbytes, LARGEST_PART_BYTES)
        return written, clock() - begun
    finally:
        os.close(file)
        path.unlink(missing_ok=True)


def existing_parent(directory: Path) -> Path:
    """Return a directory, or the nearest one above that exists. Raises `NotADirectoryError` if that is a file."""
    path = directory.absolute()
    place = next(each for each in (path, *path.parents) if os.path.lexists(each))
    if not place.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(place))
    return place
