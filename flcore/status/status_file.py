"""`status.json` in a run's directory: the state of its job, written by a thread of its own while the run goes on.

The thread waits for changes, and replaces the file at most once a second. Nothing is written while nothing happens. A
disk that does not take the file costs the run nothing: the file is left out until there is space.

A run that is done removes the file, as its history says all. After another end it stays, and says how the run ended.
"""

import json
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Self

from flcore.server.run_directory import PARTIAL_STATUS_FILE, STATUS_FILE
from flcore.status.board import StatusBoard

INTERVAL_S = 1.0
"""The shortest time between two writes."""

MAX_SHARE = 0.005
"""The largest share of its thread's time that writing takes: a status of many clients is written less often."""

CLOSE_TIMEOUT_S = 2.0
"""How long the end of a run waits for a disk that takes no file."""


class StatusFile:
    """Writes the state of a board to a run's directory while a block lasts. A context manager.

    Args:
        board: The board. It has heard of the run's end before the block ends.
        directory: The run's directory, which this process owns.
    """

    def __init__(self, board: StatusBoard, directory: Path) -> None:
        self._board, self._directory = board, directory
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._write_changes, name="flcore-status", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.set()
        self._board.wake()
        self._thread.join(CLOSE_TIMEOUT_S)

    def _write_changes(self) -> None:
        version = 0
        while not self._closing.is_set():
            version = self._board.wait(version)
            if self._closing.is_set() or not self._board.has_begun:  # the file may be that of another run
                continue
            started = time.thread_time()
            with suppress(OSError):
                self._write()
            self._closing.wait(max(INTERVAL_S, (time.thread_time() - started) / MAX_SHARE))
        if self._board.has_begun:
            self._end()

    def _end(self) -> None:
        path = self._directory / STATUS_FILE
        with suppress(OSError):
            if self._board.snapshot().state == "done":
                path.unlink(missing_ok=True)
                return
            try:
                self._write()
            except OSError:
                path.unlink(missing_ok=True)  # a full disk has room for this one in place of the last one
                self._write()

    def _write(self) -> None:
        partial = self._directory / PARTIAL_STATUS_FILE
        content = json.dumps(self._board.snapshot().to_json())
        try:
            partial.write_text(content + "\n", encoding="utf-8")
            partial.replace(self._directory / STATUS_FILE)
        except OSError:
            with suppress(OSError):
                partial.unlink(missing_ok=True)
            raise
