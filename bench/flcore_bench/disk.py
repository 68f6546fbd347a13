"""What a process takes on a disk: the most that its files in a directory held at once, and how fast the disk is."""

import os
import tempfile
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

SAMPLE_S = 0.02
BLOCK_BYTES = 512
"""What `st_blocks` counts in, whatever the file system's blocks are."""

CHUNK_BYTES = 2 << 20


class DiskWatch:
    """Looks at a directory from time to time, as a context; afterwards `high_water` is the most that was seen there.

    Files that are open in this process but have no name any more count too.
    """

    def __init__(self, directory: Path | None) -> None:
        self._directory = directory
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="disk-watch", daemon=True)
        self.high_water = 0

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
            self.high_water = max(self.high_water, held_bytes(self._directory))


def held_bytes(directory: Path) -> int:
    """Return what a directory's files, and this process's open files that were deleted from it, hold on the disk."""
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


@dataclass(frozen=True)
class DiskRates:
    """Bytes per second to a file and back, in pieces of 2 MiB, through the page cache as files usually are."""

    write: float
    read: float


def disk_rates(directory: Path, size: int) -> DiskRates:
    """Write `size` bytes to a file in a directory, and read them back: as much as a round moves, so that what the page
    cache does for one it does for the other.
    """
    written = os.urandom(CHUNK_BYTES)
    target = bytearray(CHUNK_BYTES)
    chunks = max(1, size // CHUNK_BYTES)
    with tempfile.TemporaryFile(dir=directory, buffering=0) as file:
        started = time.perf_counter()
        for _ in range(chunks):
            file.write(written)
        turned = time.perf_counter()
        file.seek(0)
        for _ in range(chunks):
            file.readinto(target)
        ended = time.perf_counter()
    return DiskRates(chunks * CHUNK_BYTES / (turned - started), chunks * CHUNK_BYTES / (ended - turned))
