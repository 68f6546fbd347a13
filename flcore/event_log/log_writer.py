"""Lines written by a thread of their own, to a destination that may block or fail.

Lines queue up to a limit; beyond it they are dropped and counted. A note with their number follows when the destination
takes lines again.
"""

import threading
from _thread import start_new_thread
from collections import deque
from collections.abc import Callable

MAX_QUEUED_LINES = 10_000
"""The most lines that wait to be written."""


class LogWriter:
    """Writes lines in order. `put` returns at once, from any thread.

    Args:
        write: Writes bytes. It may block, and it may raise `OSError`.
        note: Returns the line on a number of lines that were dropped.
        resumes: Whether a line is tried after a failed one, as for a file on a disk that was full. Default: False, the
            destination is gone for good after a failure, such as a pipe without a reader.
    """

    def __init__(self, write: Callable[[bytes], object], note: Callable[[int], str], *, resumes: bool = False) -> None:
        self._write, self._note, self._resumes = write, note, resumes
        self._lines: deque[str] = deque()
        self._changed = threading.Condition()
        self._dropped, self._is_writing, self._has_ended, self._is_closed = 0, False, False, False
        self._is_torn = False  # part of a line may be in the file
        start_new_thread(self._write_all, ())

    def put(self, line: str) -> None:
        """Queue one line, without its end."""
        with self._changed:
            if self._has_ended:
                return
            if len(self._lines) < MAX_QUEUED_LINES:
                self._lines.append(line)
            else:
                self._dropped += 1
            self._changed.notify_all()

    def close(self, timeout_s: float) -> None:
        """Wait until all lines are written, up to `timeout_s` seconds. The thread ends after them."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
            self._changed.wait_for(lambda: not self._lines and not self._is_writing, timeout_s)

    def _write_all(self) -> None:
        while (taken := self._take()) is not None:
            line, dropped = taken
            if dropped:
                line += f"\n{self._note(dropped)}"
            torn = b"\n" if self._is_torn else b""
            try:
                self._write(torn + (line + "\n").encode("utf-8", "backslashreplace"))
            except OSError:
                if not self._resumes:
                    self._end()
                    return
                self._is_torn = True
                with self._changed:
                    self._dropped += dropped + 1
            else:
                self._is_torn = False

    def _take(self) -> tuple[str, int] | None:
        """Wait for a line. Return it and the number of dropped lines to note after it; None at the end."""
        with self._changed:
            self._is_writing = False
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._lines or self._is_closed)
            if not self._lines:
                self._has_ended = True
                return None
            line, dropped = self._lines.popleft(), 0
            self._is_writing = True
            if not self._lines:
                dropped, self._dropped = self._dropped, 0
            return line, dropped

    def _end(self) -> None:
        """Drop what waits: the destination is gone, and the job goes on without it."""
        with self._changed:
            self._has_ended, self._is_writing = True, False
            self._lines.clear()
            self._changed.notify_all()
