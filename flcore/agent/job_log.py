"""The log of a job at a site: its process's output, in files that rotate."""

import os
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

MAX_LOG_BYTES = 1 << 20
"""Bytes of one file."""

LOG_FILES = 5
"""Files of one log: NAME.log, which is written, and NAME.log.1 to NAME.log.4."""


class JobLog:
    """A log of bounded size. A disk that does not take it loses the log, not the job.

    Args:
        path: The file that is written. Older ones have a number after their name.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor = -1

    def write(self, printed: bytes) -> None:
        """Append bytes. Called by one thread."""
        with suppress(OSError):
            while printed:
                room = MAX_LOG_BYTES - self._open()
                if room <= 0:
                    self._rotate()
                    continue
                printed = printed[os.write(self._descriptor, printed[:room]) :]

    def close(self) -> None:
        """Close the file. A later `write` opens it again."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _open(self) -> int:
        """Open the file if need be; return its size."""
        if self._descriptor < 0:
            flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
            self._descriptor = os.open(self.path, flags, 0o600)
        return os.fstat(self._descriptor).st_size

    def _rotate(self) -> None:
        self.close()
        paths = [self.path, *(_numbered(self.path, number) for number in range(1, LOG_FILES))]
        for newer, older in reversed(list(pairwise(paths))):
            with suppress(FileNotFoundError):
                newer.replace(older)


def remove_old_logs(directory: Path, keep: int, running: set[str]) -> None:
    """Remove all logs in a directory but those of running jobs, and the `keep` newest others.

    Args:
        directory: The directory. A log's name is the job's id and `.log`.
        keep: How many logs of other jobs are kept.
        running: The ids of the jobs that run.
    """
    logs = [(path.stat().st_mtime_ns, path) for path in directory.glob("*.log") if path.stem not in running]
    for _, path in sorted(logs, reverse=True)[keep:]:
        for file in (path, *(_numbered(path, number) for number in range(1, LOG_FILES))):
            file.unlink(missing_ok=True)


def _numbered(path: Path, number: int) -> Path:
    return path.with_name(f"{path.name}.{number}")
