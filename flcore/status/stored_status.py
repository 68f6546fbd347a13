"""The status of a run from its directory, while it goes on and later. Only reads."""

import json
from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime
from pathlib import Path

from flcore.server.run_directory import STATUS_FILE
from flcore.server.run_summary import RunStatus, RunSummary, read_run
from flcore.status.client_entry import short_reason
from flcore.status.job_status import JobStatus, State
from flcore.status.rounds import round_status, shown_metrics
from flcore.status.timeline import ROUNDS_KEPT

CRASHED = "its server ended without a word, as after a crash; start it again to go on"

ENDED: Mapping[RunStatus, State] = {
    RunStatus.FAILED: "failed",
    RunStatus.ABORTED: "aborted",
    RunStatus.STOPPED: "stopped",
    RunStatus.INTERRUPTED: "interrupted",
}

MAX_STATUS_BYTES = 16 << 20
"""A larger file is none that a server has written."""


def read_status(directory: Path) -> JobStatus:
    """Read the status of a run from its directory.

    A run that goes on has written it to `status.json`; so has one that failed or was stopped. Otherwise it follows from
    the history and the audit log, and has no clients.

    Args:
        directory: The run's directory.

    Returns:
        The status.

    Raises:
        HistoryError: The directory holds no run, or a file of it was damaged.
        OSError: A file cannot be read.
    """
    summary = read_run(directory)
    written = _read_file(directory / STATUS_FILE)
    if written is not None and (written.run, written.job) == (summary.id, summary.job):
        if summary.state is RunStatus.RUNNING or written.is_over:
            return written
        return _with_end(written, summary)
    return _from_summary(summary)


def _read_file(path: Path) -> JobStatus | None:
    try:
        with path.open("rb") as file:
            content = file.read(MAX_STATUS_BYTES + 1)
        return JobStatus.from_json(json.loads(content)) if len(content) <= MAX_STATUS_BYTES else None
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):  # of another version, or altered
        return None


def _with_end(written: JobStatus, summary: RunSummary) -> JobStatus:
    """Return the last status of a process that has ended since, with its end."""
    state, reason = _end(summary)
    return replace(
        written,
        state=state,
        reason=reason,
        connected=0,
        megabytes_per_s=0.0,
        time_left_s=None,
        resources=None,
        clients=tuple(replace(client, is_connected=False) for client in written.clients),
    )


def _from_summary(summary: RunSummary) -> JobStatus:
    """Return what the history says. It does not say how many rounds a run that is not over has: 0."""
    records = summary.history
    state, reason = _end(summary)
    last = records[-1] if records else None
    return JobStatus(
        summary.job,
        summary.id,
        state,
        reason,
        round=0 if last is None else last.round,
        rounds=0 if last is None or state != "done" else last.round,
        rounds_over=0 if last is None else last.round,
        started_s=_moment(summary.started),
        bytes_sent=sum(record.bytes_sent for record in records),
        bytes_received=sum(record.bytes_received for record in records),
        metrics={} if last is None else shown_metrics(last),
        last_rounds=tuple(round_status(record, None) for record in records[-ROUNDS_KEPT:]),
        run=summary.id,
    )


def _end(summary: RunSummary) -> tuple[State, str]:
    """Return the state of a run that has no status of its own, and its reason."""
    match summary.state:
        case RunStatus.RUNNING:
            return "running", ""
        case RunStatus.FINISHED:
            return "done", ""
        case RunStatus.UNFINISHED:
            return "stopped", CRASHED
        case _:
            return ENDED[summary.state], short_reason(summary.reason)


def _moment(text: str) -> float | None:
    """Return a moment that `utc_time` has written, in seconds since the epoch; None for another text."""
    try:
        return datetime.fromisoformat(text).timestamp()
    except ValueError:
        return None
