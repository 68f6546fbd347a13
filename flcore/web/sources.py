"""What the page shows: the jobs of a server, read from their boards and from the directories of their runs."""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from flcore.job.contract import Contract
from flcore.server.history import RoundRecord
from flcore.status.board import StatusBoard
from flcore.status.job_status import JobStatus, SiteStatus


class Source(Protocol):
    """The jobs of a server. Each has a key, which stays the same when the server is started again.

    Called from the threads of the page. Methods that take a key return None for a job that is not there.
    """

    def wait(self, version: str) -> str:
        """Wait until something has another version than this one, or until `close`. Returns the version."""
        ...

    def close(self) -> None:
        """End all waits."""
        ...

    def jobs(self) -> Sequence[tuple[str, JobStatus]]:
        """Return the jobs with their keys, the newest first."""
        ...

    def sites(self) -> Sequence[SiteStatus]:
        """Return the sites of a standing federation; none for a single job."""
        ...

    def job(self, key: str) -> JobStatus | None:
        """Return the status of a job."""
        ...

    def board(self, key: str) -> StatusBoard | None:
        """Return the board of a job that runs."""
        ...

    def records(self, key: str) -> Sequence[RoundRecord]:
        """Return the records of a job's finished rounds, in order."""
        ...

    def contract(self, key: str) -> str | None:
        """Return a job's contract as JSON."""
        ...

    def directory(self, key: str) -> Path | None:
        """Return the directory of a job's run; None if it has none."""
        ...


class RunSource:
    """The one job of a process.

    Args:
        board: Its board.
        contract: Its contract. Its name is the key.
        directory: The directory of its run.
    """

    def __init__(self, board: StatusBoard, contract: Contract, directory: Path | None) -> None:
        self._board, self._contract, self._directory = board, contract, directory

    def wait(self, version: str) -> str:
        """Wait for a change of the board."""
        return str(self._board.wait(int(version or 0)))

    def close(self) -> None:
        """End all waits."""
        self._board.wake()

    def jobs(self) -> Sequence[tuple[str, JobStatus]]:
        """Return the job."""
        return [(self._contract.name, self._board.snapshot())]

    def sites(self) -> Sequence[SiteStatus]:
        """Return no site."""
        return ()

    def job(self, key: str) -> JobStatus | None:
        """Return the status of the job."""
        return self._board.snapshot() if key == self._contract.name else None

    def board(self, key: str) -> StatusBoard | None:
        """Return the board."""
        return self._board if key == self._contract.name else None

    def records(self, key: str) -> Sequence[RoundRecord]:
        """Return the records of the board."""
        return self._board.records() if key == self._contract.name else ()

    def contract(self, key: str) -> str | None:
        """Return the contract as JSON."""
        return self._contract.to_json() if key == self._contract.name else None

    def directory(self, key: str) -> Path | None:
        """Return the directory of the run."""
        return self._directory if key == self._contract.name else None
