"""The two calls of the gRPC server that move pieces, each within a window that it holds while it lasts.

A client that sends nothing while others wait for a window is cut off: it may come back, stands in line again, and goes
on where it broke off. How long it may be silent grows each time, so that a slow client gets through as well.
"""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

import grpc
import grpc.aio

from flcore_transport.control import decode, encode_reply
from flcore_transport.endpoint import Delivery, Endpoint, Session
from flcore_transport.grpc_work import Context, Work
from flcore_transport.messages import Fetch, Grant, Offer
from flcore_transport.windows import Window, Windows


class Transfers:
    """Serves downloads and uploads of an `Endpoint`'s clients."""

    def __init__(self, endpoint: Endpoint, work: Work, windows: Windows) -> None:
        self._endpoint, self._work, self._windows = endpoint, work, windows

    async def download(self, request: bytes, context: Context) -> None:
        """Send an order's payload; the next piece is made while one is on its way, if the window holds both."""
        fetch = await self._work.answered(context, decode, Fetch, request)
        outbox = await self._work.answered(context, self._endpoint.fetch, fetch)
        async with self._windows.window() as window:
            sending: asyncio.Future[Any] | None = None
            for index in range(fetch.first_piece, len(outbox.plan)):
                if sending is not None and window.pieces == 1:
                    await sending
                piece = outbox.at_hand(index) or await self._work.answered(context, outbox.piece, index)
                if sending is not None:
                    await sending
                sending = asyncio.ensure_future(context.write(piece))
                del piece  # it is gRPC's now
            if sending is not None:
                await sending

    async def upload(self, _: Any, context: Context) -> None:
        """Take an answer piece by piece, never granting more than the window holds; end with its receipt.

        Pieces are read from the context: gRPC's iterator keeps the last one until a garbage collection.
        """
        offer = await self._work.answered(context, decode, Offer, await _read(context) or b"")
        delivery = await self._work.answered(context, self._endpoint.offer, offer)
        if delivery.received < delivery.expected:
            session = self._endpoint.session(offer.session)
            async with self._windows.window() as window:
                await asyncio.wrap_future(delivery.begin())
                await context.write(encode_reply(_grant(delivery, window)))
                async with aclosing(self._coming(context, session, delivery)) as coming:
                    async for piece in coming:
                        await self._work.answered(context, delivery.accept, piece)
                        del piece
                        await context.write(encode_reply(_grant(delivery, window)))
                if delivery.received < delivery.expected:
                    return
        await context.write(encode_reply(await self._work.answered(context, delivery.commit)))

    async def _coming(self, context: Context, session: Session, delivery: Delivery) -> AsyncGenerator[bytes, None]:
        """Yield the pieces that are missing, the next one on its way while one is worked on; or fewer, if none come.

        Ends the call of a silent client if others wait.
        """
        coming = asyncio.ensure_future(_read(context))
        try:
            for left in range(delivery.expected - delivery.received - 1, -1, -1):
                while not (await asyncio.wait({coming}, timeout=session.patience_s))[0]:
                    if self._windows.is_contended:
                        session.patience_s *= 2
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


async def _read(context: Context) -> bytes | None:
    """Return the next message of a call, or None when its client sends no more."""
    message = await context.read()
    return None if message is grpc.aio.EOF else message


def _grant(delivery: Delivery, window: Window) -> Grant:
    return Grant(delivery.received, delivery.received + window.pieces)
