"""Memory and disk of a measured process: its peaks, and a limit that the kernel enforces."""

import os
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Self

SAMPLE_S = 0.02
BLOCK_BYTES = 512
"""The unit of `st_blocks`, independent of the file system's block size."""

LIMIT_FILES = {"memory": "memory.limit_in_bytes", "": "memory.max"}
"""The file with the limit, by the controller in a line of /proc/self/cgroup: cgroup version 1, version 2."""

MOUNTS = {"memory": Path("/sys/fs/cgroup/memory"), "": Path("/sys/fs/cgroup")}


def peak_bytes() -> int:
    """Return this process's peak resident memory. (`getrusage` would include the parent's at the fork.)"""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


class DiskWatch:
    """A context that samples the disk usage of a directory. `peak_bytes` is the largest sample.

    Deleted files count while this process has them open.
    """

    def __init__(self, directory: Path | None) -> None:
        self._directory = directory
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="disk-watch", daemon=True)
        self.peak_bytes = 0

    def __enter__(self) -> Self:
        if self._directory is not None:
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._ended.set()
        if self._directory is not None:
            self._thread.join()

    def _watch(self) -> None:
        assert self._directory is not None  # noqa: S101 - the thread runs only then
        while not self._ended.wait(SAMPLE_S):
            self.peak_bytes = max(self.peak_bytes, disk_usage_bytes(self._directory))


def disk_usage_bytes(directory: Path) -> int:
    """Return the disk usage of a directory's files, including deleted ones that this process has open."""
    held: dict[int, int] = {}
    root = str(directory.resolve())
    for folder, _, names in os.walk(root):
        for name in names:
            with suppress(FileNotFoundError):
                found = Path(folder, name).stat()
                held[found.st_ino] = found.st_blocks * BLOCK_BYTES
    for link in Path("/proc/self/fd").iterdir():
        with suppress(OSError):
            if str(link.readlink()).startswith(root + os.sep):
                found = link.stat()
                held[found.st_ino] = found.st_blocks * BLOCK_BYTES
    return sum(held.values())


@contextmanager
def cgroup_limit(limit_bytes: int) -> Iterator[Path | None]:
    """Create a memory cgroup for the duration of the context. Its limit includes the page cache.

    Args:
        limit_bytes: The limit. 0 creates no cgroup.

    Yields:
        The file that a process writes 0 to in order to join; None where no cgroup was created.
    """
    group = _create_group(limit_bytes) if limit_bytes else None
    try:
        yield None if group is None else group / "cgroup.procs"
    finally:
        if group is not None:
            with suppress(OSError):
                group.rmdir()


def _create_group(limit_bytes: int) -> Path | None:
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controller, own = line.split(":", 2)
        if controller not in LIMIT_FILES:
            continue
        for parent in (MOUNTS[controller] / own.lstrip("/"), MOUNTS[controller]):
            with suppress(OSError):
                group = Path(tempfile.mkdtemp(prefix=f"flcore-bench-{os.getpid()}-", dir=parent))
                try:
                    # The kernel creates this file. If it is missing, the parent is an ordinary directory.
                    with (group / LIMIT_FILES[controller]).open("r+") as limit:
                        limit.write(str(limit_bytes))
                except OSError:
                    group.rmdir()
                    raise
                return group
    return None
