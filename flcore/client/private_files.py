"""Files in a directory of this user alone: no symbolic link is followed, and no pipe or device is opened."""

import errno
import os
import stat
from pathlib import Path

from flcore.errors import JobError

WRITABLE_BY_OTHERS = stat.S_IWGRP | stat.S_IWOTH


def require_private(path: Path) -> None:
    """Raise `JobError` unless a directory belongs to this user, and no other user can write to it.

    What is there is sent to the server, and decides which files are written and removed.
    """
    status = path.stat()
    if status.st_uid != os.geteuid():
        raise JobError(
            f"expected a directory of this user (user id {os.geteuid()}), got {path} of user id {status.st_uid}; give "
            "another one (--state)"
        )
    if status.st_mode & WRITABLE_BY_OTHERS:
        raise JobError(
            f"expected a directory that no other user can write to, got {path} with mode "
            f"{stat.S_IMODE(status.st_mode):04o}; run chmod go-w on it, or give another one (--state)"
        )


def open_regular(path: Path, flags: int) -> int:
    """Open a regular file, and return its descriptor. A new file is for its owner alone.

    Raises:
        OSError: The file cannot be opened, or is a symbolic link, a directory, a pipe or a device.
    """
    try:
        # Without O_NONBLOCK, opening a named pipe would wait for its other end.
        descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o600)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise OSError(errno.ELOOP, "it is a symbolic link", str(path)) from error
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "expected a regular file, got a directory, a pipe or a device", str(path))
    return descriptor


def read_regular(path: Path, max_bytes: int) -> bytes:
    """Return the content of a small regular file, or raise `OSError`."""
    descriptor = open_regular(path, os.O_RDONLY)
    try:
        data = b""
        while len(data) <= max_bytes and (block := os.read(descriptor, max_bytes + 1 - len(data))):
            data += block
    finally:
        os.close(descriptor)
    if len(data) > max_bytes:
        raise OSError(errno.EFBIG, f"it has more than {max_bytes:,} bytes", str(path))
    return data


def write_synced(path: Path, data: bytes) -> None:
    """Write a small file for its owner alone, and flush it to disk."""
    descriptor = open_regular(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    try:
        if os.write(descriptor, data) != len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
