"""An open file, read and written at given places: from any thread, with no position that they could fight over."""

import errno
import os
import stat
import weakref
from pathlib import Path

from flcore.errors import SpecError

MAX_IO_BUFFERS = 1024
"""What Linux takes in one call (IOV_MAX)."""


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
