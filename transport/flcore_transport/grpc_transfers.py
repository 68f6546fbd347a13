"""The two calls of the gRPC server that move pieces, each within a window that it holds while it moves.

Who stands still while others wait for a window gives it up: an upload is cut off, may come back, stands in line again
and goes on where it broke off; a download stands in line again once its client reads on. How long they may stand still
grows each time, so that slow clients get through as well. A session has one call of each kind: a newer one ends it.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from functools import partial
from typing import Any

import grpc
import grpc.aio

from flcore_transport.control import decode, encode_reply
from flcore_transport.endpoint import Delivery, Endpoint, Session
from flcore_transport.grpc_work import Context, Work
from flcore_transport.messages import Fetch, Grant, Offer
from flcore_transport.pieces import Outbox
from flcore_transport.windows import NewerCall, Superseded, Window, Windows, done


class Transfers:
    """Serves downloads and uploads of an `Endpoint`'s clients."""

    def __init__(self, endpoint: Endpoint, work: Work, windows: Windows) -> None:
        self._endpoint, self._work, self._windows = endpoint, work, windows
        self._calls: dict[tuple[str, Session], tuple[int, Superseded]] = {}

    def cut(self, client: str, order: int) -> None:
        """End the calls of a client that move pieces of an order."""
        for (_, session), (moved, superseded) in self._calls.items():
            if session.client == client and moved == order and not superseded.done():
                superseded.set_result(None)

    async def download(self, request: bytes, context: Context) -> None:
        """Send an order's payload; the next piece is made while one is on its way, if the window holds both."""
        fetch = await self._work.answered(context, decode, Fetch, request)
        session = await self._work.answered(context, self._endpoint.session, fetch.session)
        outbox = await self._work.answered(context, self._endpoint.fetch, fetch)
        index = fetch.first_piece
        async with self._newest("download", session, fetch.order, context) as superseded:
            while index < len(outbox.plan):
                async with self._windows.window(superseded) as window:
                    index, standing = await self._sent(context, session, superseded, outbox, index, window)
                if standing is not None:
                    await standing

    async def _sent(
        self, context: Context, session: Session, superseded: Superseded, outbox: Outbox, first: int, window: Window
    ) -> "tuple[int, asyncio.Future[Any] | None]":
        """Send pieces; return which is the next, and the write that stands still while others wait, if one does."""
        moves = partial(self._moves, session=session, superseded=superseded)
        sending: asyncio.Future[Any] | None = None
        for index in range(first, len(outbox.plan)):
            if sending is not None and window.pieces == 1 and not await moves(sending):
                return index, sending
            piece = outbox.at_hand(index) or await self._work.answered(context, outbox.piece, index)
            if sending is not None and not await moves(sending):
                return index, sending
            sending = asyncio.ensure_future(context.write(piece))
            sending.add_done_callback(_seen)
            del piece  # it is gRPC's now
        if sending is not None and not await moves(sending):
            return len(outbox.plan), sending
        return len(outbox.plan), None

    async def _moves(self, sending: "asyncio.Future[Any]", session: Session, superseded: Superseded) -> bool:
        """Wait until a piece is on its way; False if it stands still and others wait, or a newer call does."""
        try:
            while not await done(sending, superseded, session.patience_s):
                if self._windows.is_contended:
                    session.be_patient()
                    return False
        except NewerCall:
            return False
        sending.result()
        return True

    async def upload(self, _: Any, context: Context) -> None:
        """Take an answer piece by piece, never granting more than the window holds; end with its receipt.

        Pieces are read from the context: gRPC's iterator keeps the last one until a garbage collection.
        """
        offer = await self._work.answered(context, decode, Offer, await _read(context) or b"")
        session = await self._work.answered(context, self._endpoint.session, offer.session)
        async with self._newest("upload", session, offer.order, context) as superseded:
            delivery = await self._work.answered(context, self._endpoint.offer, offer)
            try:
                if await self._taken(context, session, superseded, delivery):
                    await context.write(encode_reply(await self._work.answered(context, delivery.commit)))
            finally:
                delivery.end()

    async def _taken(self, context: Context, session: Session, superseded: Superseded, delivery: Delivery) -> bool:
        """Take the pieces that are missing; False if the client stops before."""
        if delivery.received == delivery.expected:
            return True
        async with self._windows.window(superseded) as window:
            await done(asyncio.wrap_future(await self._work.answered(context, delivery.begin)), superseded)
            await context.write(encode_reply(_grant(delivery, window)))
            async with aclosing(self._coming(context, session, superseded, delivery)) as coming:
                async for piece in coming:
                    await self._work.answered(context, delivery.accept, piece)
                    del piece
                    await context.write(encode_reply(_grant(delivery, window)))
        return delivery.received == delivery.expected

    async def _coming(
        self, context: Context, session: Session, superseded: Superseded, delivery: Delivery
    ) -> AsyncGenerator[bytes, None]:
        """Yield the pieces that are missing, the next one on its way while one is worked on; or fewer, if none come.

        Ends the call of a silent client if others wait.
        """
        coming = asyncio.ensure_future(_read(context))
        try:
            for left in range(delivery.expected - delivery.received - 1, -1, -1):
                while not await done(coming, superseded, session.patience_s):
                    if self._windows.is_contended:
                        session.be_patient()
                        await context.abort(grpc.StatusCode.UNAVAILABLE, "others wait: come back and go on")
                piece = coming.result()
                if piece is None:
                    return
                if left:
                    coming = asyncio.ensure_future(_read(context))
                yield piece
                del piece
        finally:
            if not coming.done():
                coming.cancel()
                await asyncio.wait({coming})
            if not coming.cancelled():
                coming.exception()  # seen: an aborted call ends its reading with an error of its own

    @asynccontextmanager
    async def _newest(self, kind: str, session: Session, order: int, context: Context) -> AsyncIterator[Superseded]:
        """Be the session's one call of a kind: an older one ends when it next waits, as this one may."""
        superseded: Superseded = asyncio.get_running_loop().create_future()
        older = self._calls.get((kind, session))
        self._calls[kind, session] = order, superseded
        if older is not None and not older[1].done():
            older[1].set_result(None)
        try:
            yield superseded
        except NewerCall:
            await context.abort(grpc.StatusCode.ABORTED, "a newer call of this session took its place")
        finally:
            if self._calls.get((kind, session), (0, None))[1] is superseded:
                del self._calls[kind, session]


async def _read(context: Context) -> bytes | None:
    """Return the next message of a call, or None when its client sends no more."""
    message = await context.read()
    return None if message is grpc.aio.EOF else message


def _seen(sent: "asyncio.Future[Any]") -> None:
    """Look at how a write ended, as nobody does whose call was ended meanwhile."""
    if not sent.cancelled():
        sent.exception()


def _grant(delivery: Delivery, window: Window) -> Grant:
    return Grant(delivery.received, delivery.received + window.pieces)
