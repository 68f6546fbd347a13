"""What the page shows of a standing federation: all its jobs, and its sites, as an admin sees them."""

from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import CancelledError, Future
from pathlib import Path
from threading import Lock

from flcore.errors import HistoryError
from flcore.federation.standing_server import StandingServer
from flcore.server.history import RoundRecord
from flcore.server.history_table import read_history
from flcore.status.board import StatusBoard
from flcore.status.job_status import JobStatus, SiteStatus

MAX_HISTORIES = 4
"""The histories of jobs that are over, which are kept after they were read."""


class FederationSource:
    """The jobs of a standing federation. The key of a job is its id.

    Args:
        server: The standing federation.
    """

    def __init__(self, server: StandingServer) -> None:
        self._server = server
        self._lock = Lock()
        self._waiting: Future[str] | None = None
        self._is_closing = False
        self._histories: OrderedDict[str, Sequence[RoundRecord]] = OrderedDict()

    def wait(self, version: str) -> str:
        """Wait for a change of a job or of the sites."""
        future = self._server.next_version(version)
        with self._lock:
            self._waiting = future
            if self._is_closing:
                return version
        try:
            return future.result()
        except CancelledError:
            return version

    def close(self) -> None:
        """End all waits."""
        with self._lock:
            self._is_closing, waiting = True, self._waiting
        if waiting is not None:
            waiting.cancel()

    def jobs(self) -> Sequence[tuple[str, JobStatus]]:
        """Return the newest jobs."""
        return [(job.id, job) for job in self._server.status().jobs]

    def sites(self) -> Sequence[SiteStatus]:
        """Return the sites."""
        return self._server.status().sites

    def job(self, key: str) -> JobStatus | None:
        """Return the status of a job."""
        return self._server.job_status(key)

    def board(self, key: str) -> StatusBoard | None:
        """Return the board of a job that runs."""
        return self._server.boards().get(key)

    def records(self, key: str) -> Sequence[RoundRecord]:
        """Return the records of a job: of its board while it runs, else of its history."""
        board = self.board(key)
        if board is not None:
            return board.records()
        status = self._server.job_status(key)
        if status is None:
            return ()
        with self._lock:
            found = self._histories.get(key)
        if found is None:
            found = self._read(key)
            if status.is_over and status.state not in ("interrupted", "stopped"):  # it does not change any more
                self._keep(key, found)
        return found

    def contract(self, key: str) -> str | None:
        """Return a job's contract as JSON."""
        return self._server.contract(key)

    def directory(self, key: str) -> Path | None:
        """Return the directory of a job's run."""
        return self._server.run_directory(key)

    def _read(self, key: str) -> Sequence[RoundRecord]:
        directory = self._server.run_directory(key)
        try:
            return () if directory is None else tuple(read_history(directory))
        except (HistoryError, OSError):  # it has not begun
            return ()

    def _keep(self, key: str, records: Sequence[RoundRecord]) -> None:
        with self._lock:
            self._histories[key] = records
            while len(self._histories) > MAX_HISTORIES:
                self._histories.popitem(last=False)
