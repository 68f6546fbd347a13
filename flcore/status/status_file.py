"""`status.json` in a run's directory: the state of its job, written by a thread of its own while the run goes on.

The file is replaced after changes, at most once a second. A disk that does not take it costs the run nothing: the file
is left out until there is space.

A run that is done removes the file, as its history says all. After another end it stays, and says how the run ended.
"""

import json
from contextlib import suppress
from pathlib import Path

from flcore.server.run_directory import PARTIAL_STATUS_FILE, STATUS_FILE
from flcore.status.board import StatusBoard
from flcore.status.board_watch import BoardWatch
from flcore.status.job_status import JobStatus

INTERVAL_S = 1.0
"""The shortest time between two writes."""


def keep_status_file(board: StatusBoard, directory: Path) -> BoardWatch:
    """Return a context manager that writes the state of a board to a run's directory while its block lasts.

    Args:
        board: The board. It has heard of the run's end before the block ends.
        directory: The run's directory, which this process owns.
    """
    return BoardWatch(board, lambda: _update(board, directory / STATUS_FILE), INTERVAL_S, "status")


def _update(board: StatusBoard, path: Path) -> None:
    if not board.has_begun:  # the file may be that of another run
        return
    status = board.snapshot()
    with suppress(OSError):
        if status.state == "done":
            path.unlink(missing_ok=True)
            return
        try:
            _write(status, path)
        except OSError:
            if status.is_over:
                path.unlink(missing_ok=True)  # a full disk has room for this one in place of the last one
                _write(status, path)


def _write(status: JobStatus, path: Path) -> None:
    """Replace the file. Not synced: after a power failure the history and the audit log say how the run stands."""
    partial = path.with_name(PARTIAL_STATUS_FILE)
    try:
        partial.write_text(json.dumps(status.to_json()) + "\n", encoding="utf-8")
        partial.replace(path)
    except OSError:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        raise
