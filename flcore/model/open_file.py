"""Open files: read and written at given places, from any thread, and how many of them a process may have.

An open file has no position that threads could fight over. Models stay open while they are combined, so that a file
that is replaced meanwhile is read as it was; many of them meet the limit of open files (RLIMIT_NOFILE), which is 1024
on most machines, before any limit of memory.
"""

import errno
import os
import stat
import weakref
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from flcore.errors import BudgetError, SpecError

MAX_IO_BUFFERS = 1024
"""What Linux takes in one call (IOV_MAX)."""

RESERVED_FILES = 16
"""Left for all else: an index that is written, a directory that is flushed, modules and compiled kernels."""


class OpenFile:
    """A descriptor that is closed when the last one who uses this object lets go of it.

    Nobody closes it by hand: the number of a file that is closed in the middle of somebody's read is another file's by
    the time of the next. `path` is what the file was last called; the file is read even when it is called so no more.
    """

    def __init__(self, path: Path, flags: int = os.O_RDONLY) -> None:
        self.path = path
        try:
            self.descriptor = os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)  # a pipe would wait otherwise
        except OSError as error:
            if error.errno != errno.EMFILE:
                raise
            advice = "Too many open files: raise this process's limit, with `ulimit -n`"
            raise OSError(errno.EMFILE, advice, str(path)) from error
        weakref.finalize(self, os.close, self.descriptor).atexit = False
        if not stat.S_ISREG(os.fstat(self.descriptor).st_mode):
            raise SpecError(f"{path} is no file, but a directory, a pipe or a device")

    @property
    def size(self) -> int:
        """Bytes of the file, now."""
        return os.fstat(self.descriptor).st_size

    def read_at(self, buffers: list[memoryview], offset: int) -> None:
        """Fill buffers (of bytes), one after the other, from `offset` on; raise `SpecError` if the file ends before."""
        buffers = _remaining(buffers, 0)
        while buffers:
            count = os.preadv(self.descriptor, buffers[:MAX_IO_BUFFERS], offset)
            if not count:
                raise SpecError(
                    f"{self.path} ends at byte {offset}: it was cut while it was open; replace files instead"
                )
            offset, buffers = offset + count, _remaining(buffers, count)

    def write_at(self, buffers: list[memoryview], offset: int) -> None:
        """Write buffers (of bytes), one after the other, from `offset` on."""
        while buffers:
            count = os.pwritev(self.descriptor, buffers[:MAX_IO_BUFFERS], offset)
            offset, buffers = offset + count, _remaining(buffers, count)


def _remaining(buffers: list[memoryview], count: int) -> list[memoryview]:
    """Return what is left of some buffers when their first `count` bytes are done, from one that is not empty on."""
    done = 0
    while done < len(buffers) and count >= buffers[done].nbytes:
        count -= buffers[done].nbytes
        done += 1
    return [buffers[done][count:], *buffers[done + 1 :]] if count else buffers[done:]


def file_limits() -> tuple[int, int] | None:
    """Return the soft and the hard limit of open files; None where there are none."""
    try:
        import resource  # not on Windows
    except ImportError:
        return None
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return None
    return soft, max(hard, soft) if hard != resource.RLIM_INFINITY else 1 << 30


def raise_file_limit(others: int, models: Sequence[int]) -> None:
    """Raise this process's soft limit of open files, where needed, so that models fit (see `require_files_fit`).

    At most to the hard limit. For programs that own their process: a library leaves such settings alone.
    """
    limits = file_limits()
    if limits is None:
        return
    needed = _open_count() + RESERVED_FILES + others + sum(models)
    if needed > limits[0]:
        import resource

        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        with suppress(ValueError, OSError):  # a system with a bound below its hard limit; `require_files_fit` tells
            resource.setrlimit(resource.RLIMIT_NOFILE, (min(needed, limits[1]), hard))


def require_files_fit(others: int, models: Sequence[int]) -> None:
    """Raise `BudgetError`, which says how many models fit, unless all can be open at once.

    `models` are the numbers of files of the models, `others` that of the files beside them (see `count_files`).
    """
    limits = file_limits()
    if limits is None:
        return
    (soft, hard), used = limits, _open_count() + RESERVED_FILES
    needed, left, fit = used + others + sum(models), soft - used - others, 0
    if needed <= soft:
        return
    for count in models:
        left -= count
        fit += left >= 0
    raise BudgetError(
        f"{len(models)} checkpoints at once take {needed} open files or more, and the limit is {soft}: "
        f"{fit} fit; {_remedy(needed, hard)}"
    )


def _remedy(needed: int, hard: int) -> str:
    if needed > hard:
        return f"the hard limit (`ulimit -Hn`) is {hard}: ask an administrator to raise it, or combine fewer at once"
    return (
        f"raise it with `ulimit -n {needed}` in the shell, or with resource.setrlimit in Python "
        f"(the hard limit is {hard})"
    )


def _open_count() -> int:
    try:
        return len(os.listdir("/dev/fd")) - 1  # noqa: PTH208 - names alone; one is the listing's own
    except OSError:
        return 3
