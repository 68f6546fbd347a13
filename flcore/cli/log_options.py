"""The options of a command's log: `--log-format`, `--log-file`, `--verbose`."""

import errno
import logging
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from flcore.event_log.log import Log, LogHandler, write_to_stderr
from flcore.federation.bounded_log import BoundedLog

LOG_FILE_BYTES = 64 << 20
"""The size at which a log file is renamed to NAME.1, in place of an earlier one."""

PRIVATE = 0o600

FULL = (errno.ENOSPC, errno.EDQUOT)
"""The errors of a disk, or of a user's part of it, that is full."""


class LogFormat(StrEnum):
    """How a log is written."""

    TEXT = "text"
    JSON = "json"


LogFormatOption = Annotated[
    LogFormat, typer.Option("--log-format", help="Format of the log: lines of text or of JSON.")
]
LogFileOption = Annotated[
    Path | None,
    typer.Option(
        "--log-file",
        metavar="FILE",
        help="Append the log to this file, too. It is created for its owner alone; at 64 MiB it becomes FILE.1. A full "
        "disk costs lines. (default: standard error alone)",
        show_default=False,
    ),
]
VerboseOption = Annotated[
    bool,
    typer.Option("--verbose", "-v", help="Log at the level DEBUG: each task, answer, publication and progress, too."),
]


@dataclass(frozen=True)
class LogOptions:
    """What a command's log is like.

    Attributes:
        line_format: "text", "json" or "plain".
        file: The file that gets the log, too. None: no file.
        is_verbose: Whether lines of the level DEBUG are written.
    """

    line_format: str
    file: Path | None
    is_verbose: bool

    def open(self, job: str = "", *, write: Callable[[bytes], object] | None = write_to_stderr) -> Log:
        """Open a log, which gets what libraries log, too.

        Args:
            job: The job's name, for lines that name no other. Default: "", none.
            write: Writes bytes for people. Default: to standard error. None: the file alone gets the lines.

        Raises:
            OSError: The file cannot be opened, for another reason than a full disk.
        """
        level = logging.DEBUG if self.is_verbose else logging.INFO
        write_file = None
        if self.file is not None:
            write_file = BoundedLog(self.file, LOG_FILE_BYTES, mode=PRIVATE).write
            try:
                write_file(b"")  # a path that cannot be used is an error at once
            except OSError as error:
                if error.errno not in FULL:  # a full disk costs lines alone
                    raise
        log = Log(self.line_format, write, job=job, level=level, write_file=write_file)
        root = logging.getLogger()
        root.handlers = [LogHandler(log)] if write is not None else [*root.handlers, LogHandler(log)]
        if self.is_verbose:
            logging.getLogger("flcore").setLevel(logging.DEBUG)  # not the root: other libraries say too much
        return log
