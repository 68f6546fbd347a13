"""The two calls of the gRPC server that move pieces. Each holds a window while it moves (`windows`, `grpc_turns`)."""

import asyncio
from typing import Any

from flcore_transport.control import decode, encode_reply
from flcore_transport.endpoint import Delivery, Endpoint
from flcore_transport.grpc_turns import Mover, Turns
from flcore_transport.grpc_work import Context, Work, owned, read, seen
from flcore_transport.messages import Fetch, Grant, Offer
from flcore_transport.pieces import Outbox


class Transfers:
    """Serves downloads and uploads of an `Endpoint`'s clients."""

    def __init__(self, endpoint: Endpoint, work: Work, turns: Turns) -> None:
        self._endpoint, self._work, self._turns = endpoint, work, turns

    async def upload(self, context: Context) -> None:
        """Take an answer piece by piece, never granting more than the window holds; end with its receipt."""
        offer = await self._work.answered(context, decode, Offer, await read(context) or b"")
        session = await self._work.answered(context, self._endpoint.session, offer.session)
        async with self._turns.transfer(session.client, "upload", offer.order, context) as mover:
            offering = owned(self._work.done(self._endpoint.offer, offer), lambda begun: begun.end())
            delivery = await self._work.refusing(context, offering)
            try:
                if delivery.received < delivery.expected:
                    await self._take(context, mover, delivery)
                if delivery.received == delivery.expected:
                    receipt = await self._work.answered(context, delivery.commit)
                    mover.is_done = True
                    await context.write(encode_reply(receipt))
            finally:
                delivery.end()

    async def _take(self, context: Context, mover: Mover, delivery: Delivery) -> None:
        """Take the pieces that are missing, one on its way while one is worked on; fewer if the client stops before."""
        await mover.turn()
        await mover.wait(asyncio.wrap_future(await self._work.answered(context, delivery.begin)))
        await context.write(encode_reply(_grant(delivery, mover)))
        coming = _reading(context)
        for left in range(delivery.expected - delivery.received - 1, -1, -1):
            await mover.stand(coming)
            piece = coming.result()
            if piece is None:
                return
            if left:
                coming = _reading(context)
            ready = await self._work.answered(context, delivery.accept, piece)
            del piece
            if ready is not None:
                await mover.wait(asyncio.wrap_future(ready))
            await context.write(encode_reply(_grant(delivery, mover)))

    async def download(self, context: Context) -> None:
        """Send an order's payload; the next piece is made while one is on its way, if the window holds both."""
        fetch = await self._work.answered(context, decode, Fetch, await read(context) or b"")
        session = await self._work.answered(context, self._endpoint.session, fetch.session)
        async with self._turns.transfer(session.client, "download", fetch.order, context) as mover:
            outbox = await self._work.answered(context, self._endpoint.fetch, fetch)
            await self._send(context, mover, outbox, fetch.first_piece)
            mover.is_done = True

    async def _send(self, context: Context, mover: Mover, outbox: Outbox, first_piece: int) -> None:
        sending: asyncio.Future[Any] | None = None
        for index in range(first_piece, len(outbox.plan)):
            if sending is not None and mover.window == 1:
                await mover.stand(sending)
            if not mover.window:  # at the beginning, and after it has given way
                outbox.queued()
                await mover.turn()
            piece = outbox.at_hand(index) or await self._work.answered(context, outbox.piece, index)
            if sending is not None:
                await mover.stand(sending)
                sending.result()
                if not mover.window:
                    outbox.queued()
                    await mover.turn()
            sending = asyncio.ensure_future(context.write(piece))
            sending.add_done_callback(seen)
            del piece  # it is gRPC's now
        if sending is not None:
            await mover.stand(sending)
            sending.result()


def _reading(context: Context) -> "asyncio.Future[bytes | None]":
    """Begin to read a message. gRPC writes into it whatever becomes of its call, so it is never cancelled."""
    reading = asyncio.ensure_future(read(context))
    reading.add_done_callback(seen)
    return reading


def _grant(delivery: Delivery, mover: Mover) -> Grant:
    return Grant(delivery.received, delivery.received + mover.window)
