"""Joins: what a stranger may send. Few are read at a time, each within seconds, and worked on beside the pieces.

gRPC takes up to some 8 MiB of a call before anybody has looked at it. So only a few calls wait for their join at a
time; the others are told to come back, and an older one that is not finished gives way to a newer one.
"""

import asyncio
from typing import Any

import grpc

from flcore_transport.control import MAX_BYTES, decode
from flcore_transport.endpoint import Endpoint, Session, Stream
from flcore_transport.grpc_channel import CROWDED
from flcore_transport.grpc_work import Context, Work, read, seen
from flcore_transport.messages import Join

MOST_AT_ONCE = 16

TURN_S = 1.0
"""After how many seconds an unfinished join gives way to a newer one."""

READING_S = 10.0
"""Within how many seconds a join has to be read."""


class Joins:
    """The joins of one server. All methods but `close` run on its event loop."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        # One thread: a contract takes long to compare, and pieces must not wait for that.
        self._work = Work(1, "flcore-joins")
        self._unread: dict[asyncio.Future[None], float] = {}

    async def read(self, context: Context) -> Join:
        """Return the join that a call begins with, or end the call."""
        loop = asyncio.get_running_loop()
        gives_way: asyncio.Future[None] = loop.create_future()
        await self._make_room(context, loop.time())
        self._unread[gives_way] = loop.time()
        reading = asyncio.ensure_future(read(context))
        reading.add_done_callback(seen)
        either: set[asyncio.Future[Any]] = {reading, gives_way}
        try:
            await asyncio.wait(either, timeout=READING_S, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._unread.pop(gives_way, None)
        if not reading.done():
            await context.abort(grpc.StatusCode.UNAVAILABLE, f"no join of at most {MAX_BYTES} bytes came in time")
        return await self._work.answered(context, decode, Join, reading.result() or b"")

    async def join(self, context: Context, join: Join, stream: Stream) -> Session:
        """Open a session, or end the call."""
        return await self._work.answered(context, self._endpoint.join, join, stream)

    def close(self) -> None:
        """Take no more joins."""
        self._work.close()

    async def _make_room(self, context: Context, now: float) -> None:
        if len(self._unread) < MOST_AT_ONCE:
            return
        oldest = next(iter(self._unread))
        if now - self._unread[oldest] < TURN_S:
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, CROWDED)
        del self._unread[oldest]
        oldest.set_result(None)
