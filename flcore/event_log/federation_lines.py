"""The line of each event of a standing federation, beside those of the events of runs."""

import logging
from collections.abc import Mapping

from flcore.event_log.event_lines import (
    EventLine,
    call_refused_level,
    info,
    join_refused_line,
    refused_call_line,
    warning,
)
from flcore.federation.audit import JobOver, JobRequested, JobStarted, RequestRefused, SiteRefused
from flcore.server.events import CallRefused, ClientJoined, ClientLeft, ClientRevoked, JoinRefused
from flcore.text import counted


def _job_over_line(event: JobOver) -> str:
    return f"{event.job} is {event.state}" + (f": {event.reason}" if event.reason else "")


def _refused_request_line(event: RequestRefused) -> str:
    return f"refused {event.action or 'a request'} of {event.caller.name}: {' '.join(event.reason.split())}"


FEDERATION_LINES: Mapping[type, EventLine] = {
    ClientJoined: EventLine(info, lambda e: f"{e.client} joined ({counted(e.connected, 'site')} connected)"),
    ClientLeft: EventLine(info, lambda e: f"{e.client} left ({counted(e.connected, 'site')} connected)"),
    CallRefused: EventLine(call_refused_level, refused_call_line),
    JoinRefused: EventLine(warning, join_refused_line),
    ClientRevoked: EventLine(warning, lambda e: f"ended the session of {e.client}: {e.reason}"),
    JobRequested: EventLine(info, lambda e: f"{e.caller.name}: {e.action} {e.job or e.pack_digest[:16]}"),
    RequestRefused: EventLine(warning, _refused_request_line),
    JobStarted: EventLine(info, lambda e: f"{e.job} {'goes on' if e.is_continued else 'starts'}"),
    JobOver: EventLine(lambda e: logging.ERROR if e.state == "failed" else logging.INFO, _job_over_line),
    SiteRefused: EventLine(warning, lambda e: f"{e.client} does not run {e.job}: {e.reason}"),
}
"""The events of the lobby and of the queue. Those of a job's run are in the job's own log."""
