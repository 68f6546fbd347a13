"""Joins: what a stranger may send. Few are read at a time, each within seconds, and worked on beside the pieces.

gRPC takes up to some 8 MiB of a call before anybody has looked at it. So only a few calls wait for their join at a
time: the oldest gives way to a new one, and its client comes back. A join is a few KiB, so a client's is read at once.
"""

import asyncio
from typing import Any

import grpc

from flcore_transport.control import MAX_BYTES, decode
from flcore_transport.endpoint import Endpoint, Session, Stream
from flcore_transport.grpc_channel import CROWDED, MOST_JOINS
from flcore_transport.grpc_work import Context, Ends, Work, read, seen
from flcore_transport.messages import Join

READING_S = 10.0
"""Within how many seconds a join has to be read."""


class Joins:
    """The joins of one server. All methods but `close` run on its event loop."""

    def __init__(self, endpoint: Endpoint, ends: Ends) -> None:
        self._endpoint, self._ends = endpoint, ends
        # One thread: a contract takes long to compare, and pieces must not wait for that.
        self._work = Work(ends, 1, "flcore-joins")
        self._unread: dict[asyncio.Future[None], None] = {}

    async def read(self, context: Context) -> Join:
        """Return the join that a call begins with, or end the call."""
        gives_way: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if len(self._unread) == MOST_JOINS:
            oldest = next(iter(self._unread))
            del self._unread[oldest]
            oldest.set_result(None)
        self._unread[gives_way] = None
        reading = asyncio.ensure_future(read(context))
        reading.add_done_callback(seen)
        either: set[asyncio.Future[Any]] = {reading, gives_way}
        try:
            await asyncio.wait(either, timeout=READING_S, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._unread.pop(gives_way, None)
        if not reading.done() and gives_way.done():
            await self._ends.abort(context, grpc.StatusCode.RESOURCE_EXHAUSTED, CROWDED)
        if not reading.done():
            await self._ends.abort(
                context, grpc.StatusCode.UNAVAILABLE, f"no join of at most {MAX_BYTES} bytes came in time"
            )
        return await self._work.answered(context, decode, Join, reading.result() or b"")

    async def join(self, join: Join, stream: Stream) -> Session:
        """Open a session, or raise `Refused`."""
        return await self._work.done(self._endpoint.join, join, stream)

    def leave(self, session: Session, stream: Stream) -> None:
        """A session's stream has ended. Returns at once: what the service does then must not hold up the loop."""
        self._endpoint.leave(session, stream)
        self._work.begin(self._endpoint.tell)

    def close(self) -> None:
        """Take no more joins."""
        self._work.close()
