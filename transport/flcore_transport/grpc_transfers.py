"""The gRPC server's uploads and downloads, each within its window (`grpc_flow_control`)."""

import asyncio
from typing import Any

from flcore_transport.control import decode_message, encode_reply
from flcore_transport.grpc_calls import IncomingCall
from flcore_transport.grpc_flow_control import TransferCall, TransferScheduler
from flcore_transport.grpc_workers import Context, WorkerPool, ignore_outcome, read_message, run_with_cleanup
from flcore_transport.messages import Credit, DownloadRequest, UploadRequest
from flcore_transport.pieces import Outbox
from flcore_transport.service import IncomingUpload


class TransferHandlers:
    """Serves downloads and uploads of the clients of all jobs."""

    def __init__(self, workers: WorkerPool, scheduler: TransferScheduler) -> None:
        self._workers, self._scheduler = workers, scheduler

    async def upload(self, incoming: IncomingCall) -> None:
        """Receive an answer piece by piece, with credit for one window, and end with a receipt."""
        context, endpoint, identity = incoming.context, incoming.endpoint, incoming.identity
        request = await self._workers.run_or_refuse(
            context, decode_message, UploadRequest, await self._workers.read_request(context)
        )
        client = await self._workers.run_or_refuse(context, endpoint.client_of, request.session_secret, identity)
        async with self._scheduler.transfer((endpoint.job, client), "upload", request.assignment_id, context) as call:
            opening = run_with_cleanup(
                self._workers.run(endpoint.begin_upload, request, identity), lambda opened: opened.end()
            )
            upload = await self._workers.refuse_on_error(context, opening)
            try:
                if upload.received < upload.expected:
                    await self._receive_pieces(context, call, upload)
                if upload.received == upload.expected:
                    receipt = await self._workers.run_or_refuse(context, upload.commit)
                    call.is_done = True
                    await context.write(encode_reply(receipt))
            finally:
                upload.end()

    async def _receive_pieces(self, context: Context, call: TransferCall, upload: IncomingUpload) -> None:
        """Receive the missing pieces; return early if the client stops sending.

        The next read begins before a piece is checked, so the network and the worker threads overlap.
        """
        await call.acquire_window()
        await call.wait_for_server(asyncio.wrap_future(await self._workers.run_or_refuse(context, upload.begin)))
        await context.write(encode_reply(_credit_for(upload, call)))
        next_piece = _start_read(context)
        for left in range(upload.expected - upload.received - 1, -1, -1):
            await call.wait_for_client(next_piece)
            piece = next_piece.result()
            if piece is None:
                return
            if left:
                next_piece = _start_read(context)
            ready = await self._workers.run_or_refuse(context, upload.accept, piece)
            del piece
            if ready is not None:
                await call.wait_for_server(asyncio.wrap_future(ready))
            await context.write(encode_reply(_credit_for(upload, call)))

    async def download(self, incoming: IncomingCall) -> None:
        """Send an assignment's payload. The next piece is encoded while one is being sent, if the window holds both."""
        context, endpoint, identity = incoming.context, incoming.endpoint, incoming.identity
        request = await self._workers.run_or_refuse(
            context, decode_message, DownloadRequest, await self._workers.read_request(context)
        )
        client = await self._workers.run_or_refuse(context, endpoint.client_of, request.session_secret, identity)
        async with self._scheduler.transfer((endpoint.job, client), "download", request.assignment_id, context) as call:
            outbox = await self._workers.run_or_refuse(context, endpoint.begin_download, request, identity)
            await self._send_pieces(context, call, outbox, request.first_piece)
            call.is_done = True

    async def _send_pieces(self, context: Context, call: TransferCall, outbox: Outbox, first_piece: int) -> None:
        # gRPC sends it with the first message otherwise. A call that has to end meanwhile would send it a second time,
        # which gRPC refuses, and the client would get neither the piece nor the reason.
        await context.send_initial_metadata(())
        sending: asyncio.Future[Any] | None = None
        for index in range(first_piece, len(outbox.piece_ranges)):
            if sending is not None and call.window == 1:
                await call.wait_for_client(sending)
            if not call.window:  # at the beginning, and after it has yielded
                outbox.on_queued()
                await call.acquire_window()
            piece = outbox.cached_piece(index) or await self._workers.run_or_refuse(context, outbox.piece, index)
            if sending is not None:
                await call.wait_for_client(sending)
                sending.result()
                if not call.window:
                    outbox.on_queued()
                    await call.acquire_window()
            sending = asyncio.ensure_future(context.write(piece))
            sending.add_done_callback(ignore_outcome)
            del piece  # gRPC holds it; a second reference would keep it for a piece longer
        if sending is not None:
            await call.wait_for_client(sending)
            sending.result()


def _start_read(context: Context) -> "asyncio.Future[bytes | None]":
    """Begin to read a message, as a task of its own that is never cancelled.

    gRPC writes the message into a read that it has begun even after a cancellation, so the read must stay alive. A call
    that ends leaves its read behind, and gRPC ends it with the call.
    """
    read_task = asyncio.ensure_future(read_message(context))
    read_task.add_done_callback(ignore_outcome)
    return read_task


def _credit_for(upload: IncomingUpload, call: TransferCall) -> Credit:
    return Credit(upload.received, upload.received + call.window)
