"""The starts of jobs during which the server's process ended: a job that crashes the server is not started for ever.

A start counts while the job's code may run, until the job makes progress (an answer, a round) or its thread ends. It
does not count while the workflow waits for its sites, which may train for days: code that does not run cannot crash the
server, and an operator may restart it several times meanwhile. A rule of the job's own runs in such a wait when a site
announces its update: then the start counts again. So what is counted at the start of the server are the crashes in a
row. Of jobs that ran at two crashes, one runs at a time: the third crash tells which of them it was.
"""

import threading
from collections.abc import Iterable

from flcore.federation.job_database import JobDatabase

MAX_STARTS = 3
"""Starts in a row that the server did not survive, after which a job is failed."""

CRASHING = (
    f"the server's process has ended {MAX_STARTS} times in a row while the job ran, without an answer of a site in "
    "between; look for the reason in the job's workflow, rule and first model, and in the server's memory"
)
SUSPECTED = "waits: the server's process has ended twice while it ran; it goes on when no other such job runs"


class StartCounts:
    """Counts starts in the database. Thread-safe."""

    def __init__(self, database: JobDatabase) -> None:
        self._database = database
        self._lock = threading.Lock()
        # Held while a change is written, before `_lock`: of two rules that are called at once, the second one may not
        # crash the server before the first one's call is on the disk.
        self._write_order = threading.Lock()
        self._counts = database.starts()
        self._running: dict[int, int] = {}  # how many pieces of code of each job that has made no progress yet run

    def begin(self, number: int) -> None:
        """A job is about to start. It is on the disk when this returns."""
        self._database.count_start(number)
        with self._lock:
            self._counts[number] = self._counts.get(number, 0) + 1
            self._running[number] = 1  # its workflow

    def code_ended(self, number: int) -> None:
        """The workflow waits, or a call of the rule has ended. If no code of the job runs, the start is not counted."""
        self._change(number, -1, at=0)

    def code_began(self, number: int) -> None:
        """The job's workflow goes on, or its rule is called. The first piece of code that runs counts the start."""
        self._change(number, 1, at=1)

    def _change(self, number: int, change: int, at: int) -> None:
        with self._write_order:
            with self._lock:
                if number not in self._running:
                    return
                self._running[number] += change
                is_due = self._running[number] == at
            if is_due:  # by now it may be cleared: then the database changes nothing
                self._database.change_starts(number, change)

    def clear(self, number: int) -> bool:
        """A job has made progress, or its thread has ended. Returns whether a start was counted."""
        with self._lock:
            self._running.pop(number, None)
            if self._counts.pop(number, None) is None:
                return False
        self._database.clear_starts(number)
        return True

    def is_exhausted(self, number: int) -> bool:
        """Whether a job that does not run has had its last start."""
        with self._lock:
            return self._counts.get(number, 0) >= MAX_STARTS

    def must_wait(self, number: int, running: Iterable[int]) -> bool:
        """Whether a job has one start left, and so has one of those that run."""
        with self._lock:
            is_last = self._counts.get(number, 0) == MAX_STARTS - 1
            return is_last and any(self._counts.get(each, 0) >= MAX_STARTS for each in running)
