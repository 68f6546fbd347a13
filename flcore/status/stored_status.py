"""The status of a run from its directory, while it goes on and later. Only reads."""

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import datetime
from pathlib import Path

from flcore.errors import HistoryError
from flcore.identity.files import file_stamp
from flcore.regular_file import read_regular
from flcore.server.run_directory import HISTORY_FILE, STATUS_FILE
from flcore.server.run_summary import RunSummary, lock_owner, read_run
from flcore.status.job_status import JobStatus
from flcore.status.rounds import round_status, shown_metrics
from flcore.status.status_content import MAX_STATUS_BYTES, MalformedStatus, parse_status
from flcore.status.timeline import ROUNDS_KEPT

LOOK_S = 1.0
"""The time between two looks at the files of a run that is watched."""


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
        if summary.state == "running" or written.is_over:
            return written
        return _with_end(written, summary)
    return _from_summary(summary)


def watch_status(directory: Path, sleep: Callable[[float], object] = time.sleep) -> Iterator[JobStatus]:
    """Yield the status of a run now, then each time that it has changed, until the run is over.

    A change of a file cannot be awaited on all systems. So the metadata of its files, and its lock, are looked at once
    a second, as often as the server replaces `status.json`. Nothing is read before something has changed.

    Args:
        directory: The run's directory.
        sleep: Waits for a number of seconds.

    Raises:
        HistoryError: As `read_status`.
        OSError: A file cannot be read.
    """
    seen: object = None
    while True:
        stamps = file_stamp(directory / STATUS_FILE), file_stamp(directory / HISTORY_FILE), lock_owner(directory)
        if stamps != seen:
            seen, status = stamps, read_status(directory)
            yield status
            if status.is_over:
                return
        sleep(LOOK_S)


def _read_file(path: Path) -> JobStatus | None:
    try:
        content = read_regular(path, MAX_STATUS_BYTES)
        # The file is not synced: a power failure may leave its length or less.
        return parse_status("job", content) if content.strip(b"\0") else None
    except FileNotFoundError:
        return None
    except MalformedStatus as error:
        raise HistoryError(
            f"expected the status of a run in {path}; {error}: the file was altered, or another version of flcore has "
            f"written it; remove it, and the rest of the directory says how the run stands"
        ) from error


def _with_end(written: JobStatus, summary: RunSummary) -> JobStatus:
    """Return the last status of a process that has ended since, with its end."""
    return replace(
        written,
        state=summary.state,
        reason=summary.reason,
        connected=0,
        megabytes_per_s=0.0,
        time_left_s=None,
        resources=None,
        clients=tuple(replace(client, is_connected=False) for client in written.clients),
    )


def _from_summary(summary: RunSummary) -> JobStatus:
    """Return what the history says. It does not say how many rounds a run that is not over has: 0."""
    records = summary.history
    last = records[-1] if records else None
    return JobStatus(
        summary.job,
        summary.id,
        summary.state,
        summary.reason,
        round=0 if last is None else last.round,
        rounds=0 if last is None or summary.state != "done" else last.round,
        rounds_over=0 if last is None else last.round,
        started_s=_moment(summary.started),
        bytes_sent=sum(record.bytes_sent for record in records),
        bytes_received=sum(record.bytes_received for record in records),
        metrics={} if last is None else shown_metrics(last),
        last_rounds=tuple(round_status(record, None) for record in records[-ROUNDS_KEPT:]),
        run=summary.id,
    )


def _moment(text: str) -> float | None:
    """Return a moment that `utc_time` has written, in seconds since the epoch; None for another text."""
    try:
        return datetime.fromisoformat(text).timestamp()
    except ValueError:
        return None
