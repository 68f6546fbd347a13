"""Errors of the disk, in words for an operator: what failed, where, and what to do."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from flcore.errors import DiskError

ADVICE = {
    errno.ENOSPC: "free space there",
    errno.EDQUOT: "free space there, or raise the quota",
    errno.EFBIG: "raise the limit of a file's size",
    errno.EIO: "check the disk",
    errno.EROFS: "make it writable",
    errno.EACCES: "make it writable",
    errno.EPERM: "make it writable",
}
"""What to do about an error of the disk, by its number. Other errors of the system are not the disk's."""


@contextmanager
def named(path: Path) -> Iterator[None]:
    """Name the file in an `OSError` that names none, as one of a call with a descriptor does not."""
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno is not None:
            error.filename = str(path)
        raise


def describe_disk_error(error: OSError, place: Path) -> str:
    """Return one line about an error: the file, or `place` if it names none; the reason; what to do, if that is known.

    >>> describe_disk_error(OSError(errno.ENOSPC, "No space left on device"), Path("runs/digits"))
    'runs/digits: No space left on device; free space there'
    """
    if error.errno is None or error.strerror is None:
        return str(error)
    file = os.fsdecode(error.filename) if isinstance(error.filename, str | bytes) else str(place)
    advice = ADVICE.get(error.errno)
    return f"{file}: {error.strerror}" + (f"; {advice}" if advice else "")


def is_disk_error(error: BaseException) -> bool:
    """Whether an error is the disk's, so that the run can go on once the disk is mended."""
    return isinstance(error, DiskError) or (isinstance(error, OSError) and error.errno in ADVICE)
