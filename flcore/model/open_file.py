"""Open files: positioned reads and writes from any thread, and the process's limit of open files.

preadv and pwritev take an offset, so threads share no file position. Models stay open while they are combined, and a
file that is replaced meanwhile is read in its old version. With many models, the limit of open files (RLIMIT_NOFILE,
1024 on most machines) is reached before any limit of memory.
"""

import errno
import os
import weakref
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from flcore.disk_errors import named
from flcore.errors import BudgetError, SpecError
from flcore.regular_file import UnfitFile, open_descriptor

MAX_IO_BUFFERS = 1024
"""The buffers that Linux accepts in one preadv or pwritev (IOV_MAX)."""

RESERVED_FILES = 16
"""Descriptors kept for other purposes: an index being written, a directory being flushed, modules, cached kernels."""


class OpenFile:
    """A file descriptor that is closed with the last reference to this object.

    There is no `close`: if one thread closed the descriptor while another reads, the system could give its number to
    another file, and the reader would get that file's bytes.

    Attributes:
        path: The file's name when it was opened or last renamed by its writer. The file may have lost it since.
        descriptor: The descriptor.

    Raises:
        OSError: The file cannot be opened.
        SpecError: The path is not a regular file.
    """

    def __init__(self, path: Path, flags: int = os.O_RDONLY, mode: int = 0o666) -> None:
        self.path = path
        try:
            self.descriptor = open_descriptor(path, flags, mode)
        except UnfitFile as error:
            raise SpecError(f"{path}: expected a regular file, got {error.got}; give another path") from error
        except OSError as error:
            if error.errno != errno.EMFILE:
                raise
            advice = "Too many open files: raise the limit of this process with `ulimit -n`"
            raise OSError(errno.EMFILE, advice, str(path)) from error
        weakref.finalize(self, os.close, self.descriptor).atexit = False

    @property
    def size(self) -> int:
        """The present size of the file in bytes."""
        return os.fstat(self.descriptor).st_size

    def read_at(self, buffers: list[memoryview], offset: int) -> None:
        """Read consecutive bytes of the file into buffers.

        Args:
            buffers: Buffers of bytes, filled one after the other.
            offset: The offset of the first byte in the file.

        Raises:
            SpecError: The file ends before the buffers are full.
        """
        buffers = _remaining(buffers, 0)  # drop empty buffers, as a call that reads into none returns 0, as at the end
        while buffers:
            with named(self.path):
                count = os.preadv(self.descriptor, buffers[:MAX_IO_BUFFERS], offset)
            if not count:
                raise SpecError(
                    f"{self.path} ends at byte {offset}: it was truncated while it was open; replace files instead"
                )
            # A call may read less than asked for: Linux moves at most 2 GiB, and a signal may end it early.
            offset, buffers = offset + count, _remaining(buffers, count)

    def write_at(self, buffers: list[memoryview], offset: int) -> None:
        """Write buffers of bytes, one after the other, from `offset` on."""
        while buffers:
            with named(self.path):
                count = os.pwritev(self.descriptor, buffers[:MAX_IO_BUFFERS], offset)
            offset, buffers = offset + count, _remaining(buffers, count)


def _remaining(buffers: list[memoryview], count: int) -> list[memoryview]:
    """Return the buffers without their first `count` bytes, beginning with one that is not empty."""
    done = 0
    while done < len(buffers) and count >= buffers[done].nbytes:
        count -= buffers[done].nbytes
        done += 1
    return [buffers[done][count:], *buffers[done + 1 :]] if count else buffers[done:]


def file_limits() -> tuple[int, int] | None:
    """Return the soft and the hard limit of open files; None if they are unlimited or unknown."""
    try:
        import resource  # not on Windows
    except ImportError:
        return None
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return None
    return soft, max(hard, soft) if hard != resource.RLIM_INFINITY else 1 << 30


def raise_file_limit(others: int, models: Sequence[int]) -> None:
    """Raise the process's soft limit of open files as far as models need, at most to the hard limit.

    For programs that own their process; a library must not change it. Arguments as for `require_files_fit`.
    """
    limits = file_limits()
    if limits is None:
        return
    needed = _open_count() + RESERVED_FILES + others + sum(models)
    if needed > limits[0]:
        import resource

        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        # Some systems refuse values below their hard limit. `require_files_fit` then reports the error.
        with suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (min(needed, limits[1]), hard))


def require_files_fit(others: int, models: Sequence[int]) -> None:
    """Raise an error unless all models can be open at once.

    Args:
        others: The number of other files, as of a result (see `count_files`).
        models: The number of files of each model.

    Raises:
        BudgetError: The soft limit of open files is too low. The error says how many models fit, and how to raise it.
    """
    limits = file_limits()
    if limits is None:
        return
    (soft, hard), used = limits, _open_count() + RESERVED_FILES
    needed, left, fit = used + others + sum(models), soft - used - others, 0
    if needed <= soft:
        return
    for count in models:  # the models that fit, in order
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
        return 3  # the standard streams
