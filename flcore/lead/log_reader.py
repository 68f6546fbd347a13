"""A job's log, read in parts: as far as it is written, or followed until the job is over."""

import codecs
from collections.abc import Iterator

from flcore.federation.messages import LogPart, ReadLog
from flcore.lead.server_calls import ServerCalls


def read_log(calls: ServerCalls, job: str, client: str = "") -> Iterator[str]:
    """Yield a log in parts, as far as it is written.

    Args:
        calls: The calls to the server.
        job: The job's id.
        client: The site whose log it is. Default: the server's.
    """
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    offset = 0
    while True:
        part, body = calls.call(ReadLog(id=job, client=client, offset=offset), LogPart)
        if not body:
            return
        yield decoder.decode(body)
        offset = part.next_offset


def follow_log(calls: ServerCalls, job: str, client: str = "") -> Iterator[str]:
    """Yield a log in parts until the job is over, each as soon as it is written. Waits for a server that is away."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    offset = 0
    while True:
        request = ReadLog(id=job, client=client, offset=offset, wait=True)
        part, body = calls.wait_for_news(request, LogPart, lambda part, body: bool(body) or part.is_over)
        if not body:
            return
        yield decoder.decode(body)
        offset = part.next_offset
