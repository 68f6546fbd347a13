"""The calls that wait for a change of a status, and the size of their replies."""

import json
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace
from typing import Generic, TypeVar

from flcore.aggregation.prefetch import BackgroundThread
from flcore.federation.messages import MAX_BODY_BYTES
from flcore.federation.waits import Waits
from flcore.status.job_status import FederationStatus, JobStatus

ANY_JOB = 0
"""All calls wait for the same: for any change. Each looks whether it is one of its own."""

MARGIN = 0.9
"""A status that is too long is cut to this share of what would just fit: its parts are not all of the same length."""

ReplyT = TypeVar("ReplyT")


class StatusWaits(Generic[ReplyT]):
    """The calls that wait for a change of a status. Thread-safe.

    Events of running jobs come from threads that must not wait. While no call waits, `changed` costs them nothing.
    Otherwise a thread of this object looks at the calls.
    """

    def __init__(self) -> None:
        self._waits, self._thread = Waits[ReplyT](), BackgroundThread()
        self._lock = threading.Lock()
        self._is_due = False

    def wait(self, attempt: Callable[[bool], ReplyT | None]) -> "Future[ReplyT]":
        """Return a future of the reply of `attempt`, which is tried at once, and at each change (`Waits.wait`)."""
        return self._waits.wait(ANY_JOB, attempt)

    def changed(self) -> None:
        """Something has changed. Returns at once."""
        if not self._waits.has_any:
            return
        with self._lock:
            if self._is_due:
                return
            self._is_due = True
        self._thread.submit(self._look)

    def close(self) -> None:
        """End all calls with what there is."""
        self._waits.close()
        self._thread.close()

    def _look(self) -> None:
        with self._lock:
            self._is_due = False
        self._waits.changed(ANY_JOB)


def fitting(status: JobStatus | FederationStatus, max_bytes: int = MAX_BODY_BYTES) -> bytes:
    """Return a status as JSON of at most `max_bytes`: if need be, without some clients and earlier rounds or jobs."""
    while len(body := json.dumps(status.to_json()).encode()) > max_bytes:
        share = max_bytes / len(body)
        if isinstance(status, JobStatus):
            status = _reduced(status, share)
        elif any(job.clients or job.last_rounds for job in status.jobs):
            status = replace(status, jobs=tuple(_reduced(job, share) for job in status.jobs))
        else:
            jobs, sites = (int(share * MARGIN * len(each)) for each in (status.jobs, status.sites))
            status = replace(status, jobs=status.jobs[:jobs], sites=status.sites[:sites])
    return body


def _reduced(job: JobStatus, share: float) -> JobStatus:
    """Return a job with less than this share of its clients and rounds: the first clients, and the last rounds."""
    kept = job.clients[: int(share * MARGIN * len(job.clients))]
    left_out = job.clients_left_out + len(job.clients) - len(kept)
    first_kept = len(job.last_rounds) - int(share * MARGIN * len(job.last_rounds))
    return replace(job, clients=kept, clients_left_out=left_out, last_rounds=job.last_rounds[first_kept:])
