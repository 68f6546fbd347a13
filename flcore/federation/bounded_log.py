"""A log file that does not grow without end: beyond its limit it becomes NAME.1, in place of an earlier one."""

import errno
import os
import threading
from collections.abc import Callable
from pathlib import Path

from flcore.model.atomic_replace import create_directory

SERVER_LOG_BYTES = 8 << 20
SITE_LOG_BYTES = 1 << 20


class BoundedLog:
    """Appends to a file. Thread-safe.

    Args:
        path: The file. Its directory is created if missing.
        max_bytes: The size at which the file is renamed. So both take twice as much at most.
        written: Called after each write. Default: does nothing.
        mode: The mode of a file that is created. Default: readable by all.
    """

    def __init__(
        self, path: Path, max_bytes: int, written: Callable[[], None] = lambda: None, mode: int = 0o644
    ) -> None:
        self._path, self._max_bytes, self._written, self._mode = path, max_bytes, written, mode
        self._lock = threading.Lock()  # of the file alone: one writer at a time
        create_directory(path.parent)

    def write(self, data: bytes) -> None:
        """Append bytes. Of more than the limit, the last ones stay.

        Raises:
            OSError: The disk does not take all of them, and a part of them may be in the file; or the path is a pipe
                that nobody reads.
        """
        data = data[-self._max_bytes :]
        with self._lock:
            file = self._open()
            try:
                if os.fstat(file).st_size + len(data) > self._max_bytes:
                    os.close(file)
                    self._path.replace(earlier_log(self._path))
                    file = self._open()
                if os.write(file, data) < len(data):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._path))
            finally:
                os.close(file)
        self._written()

    def _open(self) -> int:
        # Not blocking: a pipe without a reader is an error, and holds nobody.
        return os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NONBLOCK, self._mode)


def earlier_log(path: Path) -> Path:
    """Return the name of a log's earlier part."""
    return path.with_name(f"{path.name}.1")


def read_log(path: Path, offset: int, max_bytes: int) -> tuple[bytes, int]:
    """Read a part of a log: of its earlier part and the present file, one after the other.

    Args:
        path: The file; it may be missing.
        offset: The first byte. An offset beyond the end, as after the file was renamed, means the present file's start.
        max_bytes: The most bytes.

    Returns:
        The bytes, and the offset behind them.
    """
    parts = [earlier_log(path), path]
    sizes = [each.stat().st_size if each.exists() else 0 for each in parts]
    if offset > sum(sizes):
        offset = sizes[0]
    found = bytearray()
    start = 0
    for part, size in zip(parts, sizes, strict=True):
        skipped = max(0, offset + len(found) - start)
        if skipped < size and len(found) < max_bytes:
            with part.open("rb") as file:
                file.seek(skipped)
                found += file.read(min(size - skipped, max_bytes - len(found)))
        start += size
    return bytes(found), offset + len(found)
