"""The status of a job, or of a federation: as it is now, or each time that it has changed."""

import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from flcore.federation.messages import GetStatus, StatusVersion
from flcore.job.content import MalformedMessage
from flcore.lead.server_calls import LONG_POLL_TIMEOUT_S, ServerCalls

if TYPE_CHECKING:  # else commands that ask for no status would import NumPy
    from flcore.status.job_status import FederationStatus, JobStatus

REDRAW_S = 1.0
"""The shortest time between two statuses."""


def read_status(calls: ServerCalls, job: str | None) -> "JobStatus | FederationStatus":
    """Return the status of a job, or of the federation if `job` is None, as of now."""
    _, body = calls.call(GetStatus(id=job), StatusVersion)
    return _parse(job, body, calls)


def watch_status(
    calls: ServerCalls, job: str | None, sleep: Callable[[float], object] = time.sleep
) -> "Iterator[JobStatus | FederationStatus]":
    """Yield the status now, then each time that it has changed, at most once a second. Waits for a server that is away.

    Ends with the end of the job; that of a federation does not end.

    Args:
        calls: The calls to the server.
        job: The job's id; None for the federation.
        sleep: Waits for a number of seconds.
    """
    version = ""
    while True:
        request = GetStatus(id=job, version=version)
        reply, body = calls.call_until_answered(request, StatusVersion, timeout_s=LONG_POLL_TIMEOUT_S)
        if reply.version != version or not version:
            version, status = reply.version, _parse(job, body, calls)
            yield status
            if getattr(status, "is_over", False):  # of a job
                return
        sleep(REDRAW_S)


def _parse(job: str | None, body: bytes, calls: ServerCalls) -> "JobStatus | FederationStatus":
    from flcore.status.status_content import MalformedStatus, parse_status

    try:
        return parse_status("federation", body) if job is None else parse_status("job", body)
    except MalformedStatus as error:
        raise MalformedMessage(
            f"the status that {calls.connection.address} has sent cannot be read: {error}; use the version of flcore "
            f"that the server has"
        ) from error
