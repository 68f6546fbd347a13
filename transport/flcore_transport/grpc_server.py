"""The gRPC server: one port, four calls, no thread per client.

The calls run on an asyncio loop (`grpc_loop`), so that a thousand idle clients cost a thousand coroutines.
Whatever may take longer than a moment (checking a piece, committing an answer) runs on a few worker threads, one piece
at a time for each call, so that a slow client occupies nothing while it is slow.
"""

import asyncio
from collections.abc import AsyncIterator

import grpc
import grpc.aio

from flcore_transport.control import decode, encode, encode_from_server
from flcore_transport.endpoint import Endpoint, Service, Session
from flcore_transport.errors import AddressUnavailable
from flcore_transport.grpc_channel import KEEPALIVE_MS, OPTIONS, SERVICE, require_loopback
from flcore_transport.grpc_loop import server_loop
from flcore_transport.grpc_transfers import Transfers
from flcore_transport.grpc_work import Context, Work
from flcore_transport.messages import Failure, FromServer, Goodbye, Join
from flcore_transport.pieces import PIECE_BODY_BYTES
from flcore_transport.windows import Windows

GRACE_S = 1.0
DEFAULT_WINDOWS_BYTES = 256 << 20

SERVER_OPTIONS = [
    *OPTIONS,
    # Without this a second server could bind the same port and take every other client.
    ("grpc.so_reuseport", 0),
    ("grpc.http2.min_ping_interval_without_data_ms", KEEPALIVE_MS // 2),
    ("grpc.http2.max_ping_strikes", 0),
]


class GrpcServer:
    """Serves a `Service` until closed. `credentials=None` is plaintext, on loopback unless `allow_remote`.

    All transfers together have up to `windows_bytes` of pieces under way, gRPC's own copies of them included.
    """

    def __init__(
        self,
        service: Service,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        credentials: grpc.ServerCredentials | None = None,
        allow_remote: bool = False,
        windows_bytes: int = DEFAULT_WINDOWS_BYTES,
    ) -> None:
        if credentials is None and not allow_remote:
            require_loopback(host)
        self._endpoint = Endpoint(service)
        self._work = Work()
        self._transfers = Transfers(
            self._endpoint, self._work, Windows(windows_bytes // (2 * PIECE_BODY_BYTES))
        )  # one copy is gRPC's
        self._loop = server_loop()
        self._is_closed = False
        bound = asyncio.run_coroutine_threadsafe(self._start(host, port, credentials), self._loop).result()
        self.address = f"[{host}]:{bound}" if ":" in host else f"{host}:{bound}"

    def close(self, reason: str = "the server has stopped", *, failed: bool = False) -> None:
        """Say goodbye to all clients, end all calls and free the port. May be called twice.

        `failed` says that what the clients took part in did not succeed.
        """
        if self._is_closed:
            return
        self._is_closed = True
        self._endpoint.close(reason, failed=failed)
        # Sessions end by themselves after their goodbye; what is still being transferred is cut off.
        asyncio.run_coroutine_threadsafe(self._server.stop(GRACE_S), self._loop).result()
        self._work.close()

    async def _start(self, host: str, port: int, credentials: grpc.ServerCredentials | None) -> int:
        self._server = grpc.aio.server(options=SERVER_OPTIONS)
        handlers: dict[str, grpc.RpcMethodHandler[bytes, bytes]] = {
            "Session": grpc.unary_stream_rpc_method_handler(self._session),
            "Download": grpc.unary_stream_rpc_method_handler(self._transfers.download),
            "Upload": grpc.stream_stream_rpc_method_handler(self._transfers.upload),
            "Report": grpc.unary_unary_rpc_method_handler(self._report),
        }
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
        address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        try:
            if credentials is None:
                bound = self._server.add_insecure_port(address)
            else:
                bound = self._server.add_secure_port(address, credentials)
        except RuntimeError as error:
            raise AddressUnavailable(f"cannot listen on {address}: {error}") from error
        await self._server.start()
        return bound

    async def _session(self, request: bytes, context: Context) -> AsyncIterator[bytes]:
        join = await self._work.answered(context, decode, Join, request)
        stream = _Stream(join.client, self._loop, self._transfers)
        session = await self._joined(context, join, stream)
        try:
            while True:
                message = await stream.outgoing.get()
                yield encode_from_server(message)
                if isinstance(message, Goodbye):
                    return
        finally:
            self._endpoint.leave(session, stream)

    async def _joined(self, context: Context, join: Join, stream: "_Stream") -> Session:
        """Join; if the call is cancelled meanwhile, leave as soon as the join is done."""
        joining = asyncio.ensure_future(self._work.answered(context, self._endpoint.join, join, stream))

        def leave(done: "asyncio.Future[Session]") -> None:
            if not done.cancelled() and done.exception() is None:
                self._endpoint.leave(done.result(), stream)

        try:
            return await asyncio.shield(joining)
        except asyncio.CancelledError:
            joining.add_done_callback(leave)
            raise

    async def _report(self, request: bytes, context: Context) -> bytes:
        failure = await self._work.answered(context, decode, Failure, request)
        return encode(await self._work.answered(context, self._endpoint.report, failure))


class _Stream:
    """One client's session stream: the `Link` that the service has to it."""

    def __init__(self, client: str, loop: asyncio.AbstractEventLoop, transfers: Transfers) -> None:
        self.outgoing: asyncio.Queue[FromServer] = asyncio.Queue()
        self._client, self._loop, self._transfers = client, loop, transfers

    def send(self, message: FromServer) -> None:
        """Put a message on the stream."""
        self._loop.call_soon_threadsafe(self.outgoing.put_nowait, message)

    def cut(self, order: int) -> None:
        """End the client's transfers of an order."""
        self._loop.call_soon_threadsafe(self._transfers.cut, self._client, order)
