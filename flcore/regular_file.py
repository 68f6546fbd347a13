"""Regular files, opened without waiting: a pipe, a device or a socket in the place of a file is refused.

A plain `open` of a named pipe waits for its writer, and `/dev/zero` has no end.
"""

import errno
import os
import stat
from io import BufferedReader
from pathlib import Path

KINDS = {
    stat.S_IFDIR: "a directory",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


class UnfitFile(OSError):
    """A path that is no regular file, or a file that is larger than any that flcore writes there.

    Attributes:
        got: What the path is, in words.
    """

    def __init__(self, path: Path, expected: str, got: str) -> None:
        super().__init__(errno.EINVAL, f"expected {expected}, got {got}; remove it, or put the file back", str(path))
        self.got = got


def open_descriptor(path: Path, flags: int = os.O_RDONLY, mode: int = 0o666) -> int:
    """Open a regular file, at once. Returns its descriptor.

    Raises:
        UnfitFile: The path is something else.
        OSError: It cannot be opened.
    """
    try:
        descriptor = os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC, mode)
    except OSError as error:
        if error.errno == errno.ENXIO:  # a socket, or a device that is not there
            raise UnfitFile(path, "a regular file", _kind(path.stat().st_mode)) from error
        raise
    try:
        found = os.fstat(descriptor).st_mode
        if not stat.S_ISREG(found):
            raise UnfitFile(path, "a regular file", _kind(found))
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def open_regular(path: Path) -> BufferedReader:
    """Open a regular file for reading (see `open_descriptor`)."""
    return os.fdopen(open_descriptor(path), "rb")


def read_regular(path: Path, max_bytes: int | None = None) -> bytes:
    """Return the content of a regular file.

    Args:
        path: The file.
        max_bytes: The largest size. Default: None, any.

    Raises:
        UnfitFile: The path is something else, or the file is larger.
        OSError: It cannot be read.
    """
    with open_regular(path) as file:
        content = file.read(-1 if max_bytes is None else max_bytes + 1)
    if max_bytes is not None and len(content) > max_bytes:
        raise UnfitFile(path, f"a file of at most {max_bytes:,} bytes", "a larger one")
    return content


def _kind(mode: int) -> str:
    return KINDS.get(stat.S_IFMT(mode), "something else")
