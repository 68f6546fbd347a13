"""The status of a federation and of its jobs, as a caller may see it."""

import hashlib
from contextlib import suppress
from dataclasses import replace
from datetime import datetime

from flcore.errors import HistoryError
from flcore.federation.job_database import JobDatabase
from flcore.federation.job_files import JobDirectories
from flcore.federation.job_rows import JobLine, JobRow
from flcore.federation.job_runner import JobRunner
from flcore.federation.roles import Caller
from flcore.federation.scheduler import Scheduler
from flcore.federation.told_state import may_read, told_state
from flcore.status.job_status import FederationStatus, JobStatus, SiteStatus
from flcore.status.stored_status import read_status
from flcore.text import printable, without_folders

MAX_JOBS = 100
"""The newest jobs that the status of a federation has."""

MAX_REASON_CHARACTERS = 300


class StatusViews:
    """The status of a federation and of its jobs. Thread-safe.

    Leads see all jobs, and the clients, refusals and rounds of their own ones. Admins see all, and the sites.

    Args:
        database: The database.
        files: The files of jobs.
        scheduler: The queue and the running jobs.
    """

    def __init__(self, database: JobDatabase, files: JobDirectories, scheduler: Scheduler) -> None:
        self._database, self._files, self._scheduler = database, files, scheduler

    def federation(self, caller: Caller) -> FederationStatus:
        """Return the newest jobs: those of the caller that run with their clients. For an admin, also the sites."""
        runners = self._scheduler.runners()
        lines = self._database.lines((), MAX_JOBS)
        jobs = tuple(
            self._running(caller, runners.get(line.number), line) or self._from_row(caller, line) for line in lines
        )
        if caller.role != "admin":
            return FederationStatus(jobs)
        joined = [(runner.row.id, runner.joined) for runner in runners.values()]
        sites = (
            SiteStatus(site, is_connected, tuple(job for job, clients in joined if site in clients))
            for site, is_connected in self._scheduler.sites().items()
        )
        return FederationStatus(jobs, tuple(sites))

    def job(self, caller: Caller, row: JobRow) -> JobStatus:
        """Return a job: all of it if it is the caller's."""
        status = self._running(caller, self._scheduler.runner(row.number), row)
        if status is not None:
            return status
        known = self._from_row(caller, row)
        if not may_read(caller, row) or row.state == "queued":
            return known
        with suppress(HistoryError, OSError):  # a run that had not begun, or whose directory is damaged
            written = read_status(self._files.run(row.id))
            fields = {name: getattr(known, name) for name in ("id", "state", "reason", "rounds", "ended_s")}
            return _without_paths(replace(written, **fields))
        return replace(known, metrics=row.metrics)

    def version(self, caller: Caller, row: JobRow | None) -> str:
        """Return a text that is another one when the status of a job, or of the federation (None), has changed."""
        runners = self._scheduler.runners().values()
        boards = {runner.row.number: runner.board.version for runner in runners if may_read(caller, runner.row)}
        if row is not None:
            return _digest((boards.get(row.number), row.state, row.reason, row.round))
        sites = self._scheduler.sites() if caller.role == "admin" else {}
        return _digest((boards, sites, self._database.lines((), MAX_JOBS)))

    @staticmethod
    def _running(caller: Caller, runner: JobRunner | None, row: JobRow | JobLine) -> JobStatus | None:
        """Return the status of a job that runs, if it is the caller's."""
        if runner is None or not may_read(caller, runner.row):
            return None
        status = runner.board.snapshot()
        if row.state != "running":  # it is over, and its thread still ends
            status = replace(status, state=row.state, reason=row.reason, time_left_s=None)
        return _without_paths(status)

    def _from_row(self, caller: Caller, row: JobRow | JobLine) -> JobStatus:
        """Return what the database has of a job."""
        runner = self._scheduler.runner(row.number)
        state, reason = told_state(row, self._scheduler.reason(row), is_own=may_read(caller, row))
        rounds_over = row.round if runner is None else runner.result[0]
        return JobStatus(
            row.name,
            row.id,
            state,
            _short(reason),
            round=rounds_over,
            rounds=row.rounds,
            rounds_over=rounds_over,
            started_s=_moment(row.started),
            ended_s=_moment(row.ended),
        )


def _without_paths(status: JobStatus) -> JobStatus:
    """Return a status whose reasons have no paths of the server."""
    return replace(
        status,
        reason=_short(status.reason),
        clients=tuple(replace(client, last_reason=_short(client.last_reason)) for client in status.clients),
        last_refusals=tuple(replace(refusal, reason=_short(refusal.reason)) for refusal in status.last_refusals),
        last_rounds=tuple(replace(each, reason=_short(each.reason)) for each in status.last_rounds),
    )


def _short(reason: str) -> str:
    return printable(without_folders(reason), MAX_REASON_CHARACTERS) if reason else ""


def _digest(seen: object) -> str:
    return hashlib.sha256(repr(seen).encode()).hexdigest()[:32]


def _moment(text: str) -> float | None:
    return datetime.fromisoformat(text).timestamp() if text else None
