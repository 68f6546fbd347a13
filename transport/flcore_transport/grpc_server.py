"""The gRPC server: one port, four calls, no thread per client.

The calls run on an asyncio loop (`grpc_loop`), so that a thousand idle clients cost a thousand coroutines.
Whatever may take longer than a moment (checking a piece, committing an answer) runs on a few worker threads, one piece
at a time for each call, so that a slow client occupies nothing while it is slow.

A stranger costs little: a connection that calls nothing is closed, a call without a session's secret ends before its
first message is read, and only a few joins are read at a time (`grpc_joins`).
"""

import asyncio
import errno
import resource
import socket
from collections.abc import Awaitable, Callable
from functools import partial, wraps
from typing import Any

import grpc
import grpc.aio

from flcore_transport.control import decode, encode, encode_from_server
from flcore_transport.endpoint import Endpoint, Service, refusal
from flcore_transport.errors import AddressUnavailable, TransportError
from flcore_transport.grpc_channel import (
    KEEPALIVE_MS,
    OPTIONS,
    SERVICE,
    SESSION_METADATA,
    join_address,
    require_loopback,
)
from flcore_transport.grpc_joins import Joins
from flcore_transport.grpc_loop import server_loop
from flcore_transport.grpc_transfers import Transfers
from flcore_transport.grpc_turns import Turns
from flcore_transport.grpc_work import Context, Ends, Work, read
from flcore_transport.messages import Failure, FromServer, Goodbye
from flcore_transport.pieces import PIECE_BODY_BYTES
from flcore_transport.windows import DEFAULT_WINDOWS_BYTES, Ending, Windows

GRACE_S = 1.0

HANDSHAKE_S = 10
"""For how many seconds a connection may say nothing that HTTP/2 begins with."""

IDLE_S = 30
"""For how many seconds a connection may have no call."""

OWN_DESCRIPTORS = 256
"""How many of the process's descriptors are for other things than connections, at most half of them."""

SERVER_OPTIONS = [
    *OPTIONS,
    # Without this a second server could bind the same port and take every other client.
    ("grpc.so_reuseport", 0),
    ("grpc.http2.min_ping_interval_without_data_ms", KEEPALIVE_MS // 2),
    ("grpc.http2.max_ping_strikes", 0),
    ("grpc.server_handshake_timeout_ms", HANDSHAKE_S * 1000),
    ("grpc.max_connection_idle_ms", IDLE_S * 1000),
]

MOST_CONNECTIONS = 10_000
"""An idle one takes some 12 KB."""


def most_connections() -> int:
    """Return how many connections a server takes: what the limit of descriptors leaves when the process has its own."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return (
        MOST_CONNECTIONS
        if soft == resource.RLIM_INFINITY
        else min(MOST_CONNECTIONS, max(soft - OWN_DESCRIPTORS, soft // 2))
    )


def why_unavailable(host: str, port: int) -> str:
    """Return the system's reason why no socket can listen at an address, or "" where one can now."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as gRPC does
            probe.bind(address)
            probe.listen()
    except socket.gaierror as error:
        return f"the name {host!r} is not known ({error.strerror})"
    except OSError as error:
        in_use = "; another server may use this port, choose another one (--port)" * (error.errno == errno.EADDRINUSE)
        return f"{(error.strerror or str(error)).lower()}{in_use}"
    return ""


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
        self._ends = Ends()
        self._work = Work(self._ends)
        self._turns = Turns(Windows(windows_bytes // (2 * PIECE_BODY_BYTES)), self._ends)  # one copy is gRPC's
        self._transfers = Transfers(self._endpoint, self._work, self._turns)
        self._joins = Joins(self._endpoint, self._ends)
        self._loop = server_loop()
        self._is_closed = False
        bound = asyncio.run_coroutine_threadsafe(self._start(host, port, credentials), self._loop).result()
        self.address = join_address(host, bound)

    def close(self, reason: str = "the server has stopped", *, failed: bool = False) -> None:
        """Say goodbye to all clients, end all calls and free the port. May be called twice.

        `failed` says that what the clients took part in did not succeed.
        """
        if self._is_closed:
            return
        self._is_closed = True
        self._endpoint.close(reason, failed=failed)
        asyncio.run_coroutine_threadsafe(self._stop(), self._loop).result()
        self._work.close()
        self._joins.close()

    async def _start(self, host: str, port: int, credentials: grpc.ServerCredentials | None) -> int:
        options = [*SERVER_OPTIONS, ("grpc.max_allowed_incoming_connections", most_connections())]
        self._server = grpc.aio.server(options=options)
        # All take a stream of requests, so that they may end before the first is read.
        handlers: dict[str, grpc.RpcMethodHandler[bytes, bytes]] = {
            "Session": grpc.stream_stream_rpc_method_handler(self._session),
            "Download": grpc.stream_stream_rpc_method_handler(self._proved(self._transfers.download)),
            "Upload": grpc.stream_stream_rpc_method_handler(self._proved(self._transfers.upload)),
            "Report": grpc.stream_stream_rpc_method_handler(self._proved(self._report)),
        }
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
        address = join_address(host, port)
        try:
            if credentials is None:
                bound = self._server.add_insecure_port(address)
            else:
                bound = self._server.add_secure_port(address, credentials)
        except RuntimeError as error:
            raise AddressUnavailable(f"cannot listen on {address}: {why_unavailable(host, port) or error}") from error
        await self._server.start()
        return bound

    async def _stop(self) -> None:
        """Let sessions end by themselves after their goodbye, and cut off what is still being transferred."""

        async def stop() -> None:
            await self._server.stop(GRACE_S)
            self._ends.is_stopping = True

        stopping = asyncio.ensure_future(stop())
        await asyncio.wait({stopping}, timeout=GRACE_S / 2)
        self._ends.is_stopping = True  # well before gRPC ends the calls that are left
        await stopping

    def _proved(self, handler: Callable[[Context], Awaitable[None]]) -> Callable[[Any, Context], Awaitable[None]]:
        """Return a handler of calls that carry a session's secret; others end at once."""

        @wraps(handler)
        async def call(_: Any, context: Context) -> None:
            sent = dict(context.invocation_metadata() or ()).get(SESSION_METADATA, b"")
            try:
                self._endpoint.session(sent if isinstance(sent, str) else sent.decode("utf-8", "replace"))
            except TransportError as error:
                await self._ends.refuse(context, refusal(error))
            await handler(context)

        return call

    async def _session(self, _: Any, context: Context) -> None:
        """Push what the service says. No generator: one that gRPC cancels ends at a garbage collection, not at once."""
        session, stream = await self._joins.joined(context, partial(_Stream, self._loop, self._turns))
        try:
            while True:
                message = await stream.outgoing.get()
                if message is None:
                    await self._ends.refuse(context, refusal(Ending.SUPERSEDED.error()))
                    return
                await context.write(encode_from_server(message))
                if isinstance(message, Goodbye):
                    return
        finally:
            self._joins.leave(session, stream)

    async def _report(self, context: Context) -> None:
        failure = await self._work.answered(context, decode, Failure, await read(context) or b"")
        await context.write(encode(await self._work.answered(context, self._endpoint.report, failure)))


class _Stream:
    """One client's session stream: the `Link` that the service has to it."""

    def __init__(self, loop: asyncio.AbstractEventLoop, turns: Turns, client: str) -> None:
        self.outgoing: asyncio.Queue[FromServer | None] = asyncio.Queue()
        self._client, self._loop, self._turns = client, loop, turns

    def send(self, message: FromServer) -> None:
        """Put a message on the stream."""
        self._loop.call_soon_threadsafe(self.outgoing.put_nowait, message)

    def cut(self, order: int) -> None:
        """End the client's transfers of an order."""
        self._loop.call_soon_threadsafe(self._turns.cut, self._client, order)

    def give_up(self) -> None:
        """End the stream: its client has a newer one."""
        self._loop.call_soon_threadsafe(self.outgoing.put_nowait, None)
