"""Joins: what a stranger may send. Few are read at a time, each within seconds, and worked on beside the pieces.

gRPC takes up to some 8 MiB of a call before anybody has looked at it. So only a few calls have a slot at a time: from
when one is read until its join is admitted or refused, even if the call has ended by then. The oldest that is not read
yet gives way to a new one; where all are read, the new one gives way. A client that gave way comes back. A join is a
few KiB, so a client's is read at once.
"""

import asyncio
from collections.abc import Callable
from typing import Any, TypeVar

import grpc

from flcore_transport.control import MAX_BYTES, decode, require_size
from flcore_transport.endpoint import Endpoint, Session, Stream
from flcore_transport.grpc_channel import CROWDED, MOST_JOINS
from flcore_transport.grpc_work import Context, Ends, Work, owned, read, seen
from flcore_transport.messages import Join

READING_S = 10.0
"""Within how many seconds a join has to be read."""

S = TypeVar("S", bound=Stream)


class Joins:
    """The joins of one server. All methods but `close` run on its event loop."""

    def __init__(self, endpoint: Endpoint, ends: Ends) -> None:
        self._endpoint, self._ends = endpoint, ends
        # One thread: a contract takes long to compare, and pieces must not wait for that.
        self._work = Work(ends, 1, "flcore-joins")
        self._unread: dict[asyncio.Future[None], None] = {}
        self._in_work = 0

    async def joined(self, context: Context, stream_for: Callable[[str], S]) -> tuple[Session, S]:
        """Return the session that a call's join opens, and the stream that `stream_for` made for its client's name.

        Ends the call if its join is refused, does not come in time, or gives way. If the call is cancelled meanwhile,
        its session ends as soon as it has begun.
        """

        async def joined() -> tuple[Session, S]:
            data = await self._read(context)
            self._in_work += 1
            return await owned(self._admitted(data, stream_for), lambda opened: self.leave(*opened))

        return await self._work.refusing(context, joined())

    async def _admitted(self, data: bytes, stream_for: Callable[[str], S]) -> tuple[Session, S]:
        """Open the session of a join that has been read, and free its slot: not before, even if its call has ended."""

        def join() -> tuple[Session, S]:
            decoded = decode(Join, data)
            stream = stream_for(decoded.client)
            return self._endpoint.join(decoded, stream), stream

        try:
            return await self._work.done(join)
        finally:
            self._in_work -= 1

    async def _read(self, context: Context) -> bytes:
        """Return the message that a call begins with, of at most `MAX_BYTES`, or end the call."""
        await self._make_room(context)
        gives_way: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._unread[gives_way] = None
        reading = asyncio.ensure_future(read(context))
        reading.add_done_callback(seen)
        either: set[asyncio.Future[Any]] = {reading, gives_way}
        try:
            await asyncio.wait(either, timeout=READING_S, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._unread.pop(gives_way, None)
        if gives_way.done():  # even if it has been read meanwhile: the slot is another's
            await self._crowded(context)
        if not reading.done():
            await self._ends.abort(
                context, grpc.StatusCode.UNAVAILABLE, f"no join of at most {MAX_BYTES} bytes came in time"
            )
        data = reading.result() or b""
        require_size(len(data))  # before it waits for the thread
        return data

    async def _make_room(self, context: Context) -> None:
        """Have the oldest call that is not read yet give way if all slots are taken; end this one if all are read."""
        if len(self._unread) + self._in_work < MOST_JOINS:
            return
        if not self._unread:
            await self._crowded(context)
        oldest = next(iter(self._unread))
        del self._unread[oldest]
        oldest.set_result(None)

    async def _crowded(self, context: Context) -> None:
        await self._ends.abort(context, grpc.StatusCode.RESOURCE_EXHAUSTED, CROWDED)

    def leave(self, session: Session, stream: Stream) -> None:
        """A session's stream has ended. Returns at once: what the service does then must not hold up the loop."""
        self._endpoint.leave(session, stream)
        self._work.begin(self._endpoint.tell)

    def close(self) -> None:
        """Take no more joins."""
        self._work.close()
