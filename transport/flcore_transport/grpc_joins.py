"""Joins: few are read at a time, each with a timeout, on a thread apart from the pieces.

A join is read only if its client may join, by the name in the call's metadata and by its certificate. Over plaintext
the name is only claimed, so reading is bounded all the same. gRPC buffers up to about 8 MiB of a call before flcore
reads it. So only a few calls have a slot. A call holds its slot from the start of reading until its join is admitted or
refused, even if the call has ended by then. If all slots are taken, a new call evicts the oldest call that is still
being read; if all are read, the new call is refused. An evicted client retries. A join is a few KiB and is read at
once, so peers that send slowly cannot keep clients out.
"""

import asyncio
from typing import Any

import grpc

from flcore_transport.control import MAX_MESSAGE_BYTES, decode_message, require_size
from flcore_transport.endpoint import Endpoint, Session
from flcore_transport.errors import Refused
from flcore_transport.grpc_calls import IncomingCall
from flcore_transport.grpc_channel import MAX_PENDING_JOINS, TOO_MANY_JOINS
from flcore_transport.grpc_workers import (
    CallAborter,
    Context,
    WorkerPool,
    ignore_outcome,
    read_message,
    run_with_cleanup,
)
from flcore_transport.messages import Join
from flcore_transport.service import SessionStream

JOIN_TIMEOUT_S = 10.0
"""Seconds within which a join must arrive."""


class JoinQueue:
    """The joins of one server. All methods but `close` run on its event loop."""

    def __init__(self, aborter: CallAborter) -> None:
        self._aborter = aborter
        # Its own thread: comparing contracts is slow, and pieces must not wait for it.
        self._workers = WorkerPool(aborter, 1, "flcore-joins")
        self._unread: dict[asyncio.Future[None], None] = {}
        self._admitting = 0

    async def accept(self, call: IncomingCall, client: str, stream: SessionStream) -> Session:
        """Return the session that the join of an authorized client opens on its stream.

        Ends the call if its join is refused, late or evicted. If the call is cancelled while the join is being
        admitted, the session ends as soon as it has begun.
        """

        async def read_and_admit() -> Session:
            data = await self._read_join(call.context)
            self._admitting += 1
            return await run_with_cleanup(
                self._admit(data, call, client, stream), lambda opened: self.leave(call.endpoint, opened, stream)
            )

        return await self._workers.refuse_on_error(call.context, read_and_admit())

    async def _admit(self, data: bytes, call: IncomingCall, client: str, stream: SessionStream) -> Session:
        """Open the session of a join that has been read, and then free its slot, even if its call has ended."""

        def join() -> Session:
            with call.endpoint.reporting_joins(client):
                decoded = decode_message(Join, data)
                if decoded.client != client:  # authorized was the name in the metadata
                    raise Refused(
                        "wrong-identity", f"client {decoded.client!r} may not join: its call is that of {client!r}"
                    )
            return call.endpoint.join(decoded, stream, call.peer)

        try:
            return await self._workers.run(join)
        finally:
            self._admitting -= 1

    async def _read_join(self, context: Context) -> bytes:
        """Return the first message of a call, of at most `MAX_MESSAGE_BYTES`, or end the call."""
        await self._free_slot(context)
        evicted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._unread[evicted] = None
        reading = asyncio.ensure_future(read_message(context))
        reading.add_done_callback(ignore_outcome)
        either: set[asyncio.Future[Any]] = {reading, evicted}
        try:
            await asyncio.wait(either, timeout=JOIN_TIMEOUT_S, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._unread.pop(evicted, None)
        if evicted.done():  # even if it has been read meanwhile: the slot is already given away
            await self._refuse_crowded(context)
        if not reading.done():
            await self._aborter.abort(
                context, grpc.StatusCode.UNAVAILABLE, f"no join of at most {MAX_MESSAGE_BYTES} bytes came in time"
            )
        data = reading.result() or b""
        require_size(len(data))  # before it waits for the thread, so that waiting joins are small
        return data

    async def _free_slot(self, context: Context) -> None:
        """If all slots are taken, evict the oldest call that is still being read, or end this call if all are read."""
        if len(self._unread) + self._admitting < MAX_PENDING_JOINS:
            return
        if not self._unread:
            await self._refuse_crowded(context)
        oldest = next(iter(self._unread))
        del self._unread[oldest]
        oldest.set_result(None)

    async def _refuse_crowded(self, context: Context) -> None:
        await self._aborter.abort(context, grpc.StatusCode.RESOURCE_EXHAUSTED, TOO_MANY_JOINS)

    def leave(self, endpoint: Endpoint, session: Session, stream: SessionStream) -> None:
        """Record that a session's stream has ended."""
        endpoint.leave(session, stream)
        self.notify_service(endpoint)

    def notify_service(self, endpoint: Endpoint) -> None:
        """Tell an endpoint's service who came and went, on the thread: it may block."""
        self._workers.submit(endpoint.notify_service)

    def close(self) -> None:
        """Take no more joins."""
        self._workers.close()
