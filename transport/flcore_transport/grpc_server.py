"""The gRPC server: one port, four calls, no thread per client.

Calls are coroutines on an asyncio loop (`grpc_event_loop`), so a thousand idle clients cost a thousand coroutines and
no thread. Work that may block the loop (checking a piece, committing an answer) runs on a few worker threads, one piece
at a time per call. A slow client holds no thread while it is slow.

Unauthenticated peers have bounded cost: a connection without calls is closed, a call without a session's secret ends
before its first message is read, and only a few joins are read at a time (`grpc_joins`).
"""

import asyncio
import errno
import logging
import resource
import socket
from collections.abc import Awaitable, Callable
from functools import partial, wraps
from typing import Any

import grpc
import grpc.aio

from flcore_transport.client_limits import ClientLimits
from flcore_transport.control import decode_message, encode_from_server, encode_message
from flcore_transport.endpoint import Endpoint, Peer, Service, Session, to_refusal
from flcore_transport.errors import AddressUnavailable, TransportError
from flcore_transport.flow_control import DEFAULT_IN_FLIGHT_BYTES, FlowControl
from flcore_transport.grpc_channel import (
    OPTIONS,
    SERVICE,
    SESSION_METADATA,
    TOO_MANY_CALLS,
    TOO_MANY_JOINS,
    join_address,
    require_loopback,
)
from flcore_transport.grpc_event_loop import server_event_loop
from flcore_transport.grpc_flow_control import TransferScheduler
from flcore_transport.grpc_joins import JoinQueue
from flcore_transport.grpc_tls import peer_certificate, server_credentials
from flcore_transport.grpc_transfers import TransferHandlers
from flcore_transport.grpc_workers import CallAborter, Context, WorkerPool
from flcore_transport.identity import Identity, ServerTls
from flcore_transport.messages import Failure, FromServer, Goodbye
from flcore_transport.pieces import PIECE_BODY_BYTES

logger = logging.getLogger(__name__)

GOODBYE_TIMEOUT_S = 3.0
"""Seconds that a closing server waits for the delivery of its goodbyes."""

HANG_UP_TIMEOUT_S = 1.0
"""Seconds that a session stays open after its goodbye, unless its client hangs up before."""

STOP_TIMEOUT_S = 1.0
"""Seconds that other calls may continue before gRPC cuts them."""

HANDSHAKE_TIMEOUT_S = 10
"""Seconds that a connection has for the HTTP/2 handshake."""

IDLE_TIMEOUT_S = 30
"""Seconds after which a connection without calls is closed."""

CERTIFICATE_CHECK_INTERVAL_S = 0.5
"""Seconds between two checks of the certificates of all sessions."""

SESSIONS_PER_CHECK = 64
"""The most sessions that are checked before other work of the event loop has its turn: about 0.6 ms."""

RESERVED_DESCRIPTORS = 256
"""File descriptors kept for files and libraries, but at most half of the process's limit."""

MIN_PING_INTERVAL_MS = 10_000
"""Milliseconds between pings of an honest client without data. One that comes sooner is a strike."""

MAX_PING_STRIKES = 10
"""The most strikes of a connection since it last got data. After that it is closed."""

SERVER_OPTIONS = [
    *OPTIONS,
    # Without this a second server could bind the same port and take every other client.
    ("grpc.so_reuseport", 0),
    ("grpc.http2.min_ping_interval_without_data_ms", MIN_PING_INTERVAL_MS),
    ("grpc.http2.max_ping_strikes", MAX_PING_STRIKES),
    ("grpc.server_handshake_timeout_ms", HANDSHAKE_TIMEOUT_S * 1000),
    ("grpc.max_connection_idle_ms", IDLE_TIMEOUT_S * 1000),
]

MAX_CONNECTIONS = 10_000
"""An idle connection takes about 12 KB."""


def connection_limit() -> int:
    """Return the most connections of a server: the limit of file descriptors less the reserved ones."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return (
        MAX_CONNECTIONS
        if soft == resource.RLIM_INFINITY
        else min(MAX_CONNECTIONS, max(soft - RESERVED_DESCRIPTORS, soft // 2))
    )


def bind_error(host: str, port: int) -> str:
    """Return the system's reason why no socket can listen at an address, or "" if one can now."""
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
    """Serves a `Service` until closed.

    Args:
        service: The server's logic.
        host: The address to listen on.
        port: The port; 0 takes a free one.
        tls: For mutual TLS. Default: None, plaintext.
        allow_remote: Whether plaintext may be served beyond loopback.
        in_flight_bytes: The most bytes of pieces in flight over all transfers, including gRPC's copies.
    """

    def __init__(
        self,
        service: Service,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        tls: ServerTls | None = None,
        allow_remote: bool = False,
        in_flight_bytes: int = DEFAULT_IN_FLIGHT_BYTES,
    ) -> None:
        if tls is None and not allow_remote:
            require_loopback(host)
        self._endpoint, self._tls = Endpoint(service), tls
        self._aborter = CallAborter()
        self._workers = WorkerPool(self._aborter)
        # gRPC holds a second copy of each piece in flight.
        self._scheduler = TransferScheduler(FlowControl(in_flight_bytes // (2 * PIECE_BODY_BYTES)), self._aborter)
        self._transfers = TransferHandlers(self._endpoint, self._workers, self._scheduler)
        self._limits = ClientLimits()
        self._joins = JoinQueue(self._endpoint, self._aborter)
        self._loop = server_event_loop()
        self._is_closed = False
        self._sessions: set[asyncio.Task[Any]] = set()
        self._certificate_watch: asyncio.Task[None] | None = None
        bound = asyncio.run_coroutine_threadsafe(self._start(host, port), self._loop).result()
        self.address = join_address(host, bound)

    def close(self, reason: str = "the server has stopped", *, failed: bool = False) -> None:
        """Deliver goodbyes to all clients, end all calls and free the port. May be called twice.

        Args:
            reason: Why the job has ended, for the clients.
            failed: Whether the job has failed.
        """
        if self._is_closed:
            return
        self._is_closed = True
        self._endpoint.close(reason, failed=failed)
        asyncio.run_coroutine_threadsafe(self._stop(), self._loop).result()
        self._workers.close()
        self._joins.close()

    async def _start(self, host: str, port: int) -> int:
        options = [*SERVER_OPTIONS, ("grpc.max_allowed_incoming_connections", connection_limit())]
        self._server = grpc.aio.server(options=options)
        # All are stream handlers: gRPC would read the request of a unary one before the call could be refused.
        handlers: dict[str, grpc.RpcMethodHandler[bytes, bytes]] = {
            "Session": grpc.stream_stream_rpc_method_handler(self._limited(self._session)),
            "Download": grpc.stream_stream_rpc_method_handler(self._authenticated(self._transfers.download)),
            "Upload": grpc.stream_stream_rpc_method_handler(self._authenticated(self._transfers.upload)),
            "Report": grpc.stream_stream_rpc_method_handler(self._authenticated(self._report)),
        }
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
        address = join_address(host, port)
        try:
            if self._tls is None:
                bound = self._server.add_insecure_port(address)
            else:
                bound = self._server.add_secure_port(address, server_credentials(self._tls))
        except RuntimeError as error:
            raise AddressUnavailable(f"cannot listen on {address}: {bind_error(host, port) or error}") from error
        await self._server.start()
        if self._tls is not None:
            self._certificate_watch = asyncio.ensure_future(self._watch_certificates(self._tls))
        return bound

    async def _stop(self) -> None:
        """Deliver the goodbyes, then cut the calls that are left."""
        if self._certificate_watch is not None:
            self._certificate_watch.cancel()
        # gRPC closes the sockets when it stops, and a reset discards what the client has not read. So the port and the
        # sessions stay open until the clients have hung up: a client that loses its goodbye would wait for this server
        # as for one that restarts. A client that joins meanwhile is refused, with the reason.
        if self._sessions:
            await asyncio.wait(self._sessions, timeout=GOODBYE_TIMEOUT_S)

        async def stop() -> None:
            await self._server.stop(STOP_TIMEOUT_S)
            self._aborter.is_stopping = True

        stopping = asyncio.ensure_future(stop())
        await asyncio.wait({stopping}, timeout=STOP_TIMEOUT_S / 2)
        self._aborter.is_stopping = True  # well before gRPC ends the calls that are left
        await stopping

    def _limited(
        self, handler: Callable[[Context, Peer | None], Awaitable[None]]
    ) -> Callable[[Any, Context], Awaitable[None]]:
        """Return a handler that is told who calls; end calls of refused certificates, and those above a limit."""

        @wraps(handler)
        async def call(_: Any, context: Context) -> None:
            peer = await self._identify(context)
            if peer is None:
                await handler(context, None)
                return
            client = peer[1].name
            if not self._limits.begin_call(client):
                await self._refuse_unread(context)
            try:
                await handler(context, peer)
            finally:
                self._limits.end_call(client)

        return call

    def _authenticated(
        self, handler: Callable[[Context, Identity | None], Awaitable[None]]
    ) -> Callable[[Any, Context], Awaitable[None]]:
        """Return a handler that refuses calls without a valid session secret before reading them."""

        @wraps(handler)
        async def call(context: Context, peer: Peer | None) -> None:
            identity = None if peer is None else peer[1]
            sent = dict(context.invocation_metadata() or ()).get(SESSION_METADATA, b"")
            try:
                secret = sent if isinstance(sent, str) else sent.decode("utf-8", "replace")
                self._endpoint.find_session(secret, identity)
            except TransportError as error:
                await self._refuse(context, None if identity is None else identity.fingerprint, error)
            await handler(context, identity)

        return self._limited(call)

    async def _identify(self, context: Context) -> Peer | None:
        """Return the peer of a call, None over plaintext; refuse the call if its certificate is not accepted."""
        if self._tls is None:
            return None
        try:
            certificate = peer_certificate(context)
            return certificate, self._tls.identify(certificate)
        except TransportError as error:
            await self._refuse(
                context, f"refused {hash(b''.join(context.auth_context().get('x509_pem_cert', ())))}", error
            )
            raise  # not reached: refuse has raised

    async def _refuse(self, context: Context, certificate: str | None, error: TransportError) -> None:
        """Refuse a call, with the reason unless its certificate has had too many refusals."""
        if certificate is not None and not self._limits.refusals.take(certificate, self._loop.time()):
            await self._refuse_unread(context)
        await self._aborter.refuse(context, to_refusal(error))

    async def _refuse_unread(self, context: Context) -> None:
        await self._aborter.abort(context, grpc.StatusCode.RESOURCE_EXHAUSTED, TOO_MANY_CALLS)

    async def _watch_certificates(self, tls: ServerTls) -> None:
        """End sessions and transfers whose certificate has expired or been revoked since they began."""
        was_failing = False
        while True:
            await asyncio.sleep(CERTIFICATE_CHECK_INTERVAL_S)
            failure: Exception | None = None
            for index, session in enumerate(self._endpoint.sessions(), 1):
                # An error that is no refusal does not end the session, and must not end this task. The same error
                # fails the client's next call.
                try:
                    self._end_if_refused(session, tls)
                except Exception as error:  # noqa: BLE001 - tried again at the next check
                    failure = error
                if index % SESSIONS_PER_CHECK == 0:
                    await asyncio.sleep(0)
            if failure is not None and not was_failing:
                logger.error("certificates of sessions cannot be checked, which is tried again", exc_info=failure)
            was_failing = failure is not None

    def _end_if_refused(self, session: Session, tls: ServerTls) -> None:
        if error := self._endpoint.end_refused_session(session, tls):
            logger.info("ended the session of %s: %s", session.client, error)
            self._scheduler.end_client(session.client)
            self._joins.notify_service()

    async def _session(self, context: Context, peer: Peer | None) -> None:
        """Push the service's messages. Not a generator: a cancelled one would end at a garbage collection only."""
        if peer is not None and not self._limits.joins.take(peer[1].name, self._loop.time()):
            await self._aborter.abort(context, grpc.StatusCode.RESOURCE_EXHAUSTED, TOO_MANY_JOINS)
        make_stream = partial(_SessionStream, self._loop, self._scheduler)
        session, stream = await self._joins.accept(context, peer, make_stream)
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - gRPC runs each call in a task
        self._sessions.add(task)
        try:
            while True:
                message = await stream.outgoing.get()
                if isinstance(message, TransportError):
                    await self._aborter.refuse(context, to_refusal(message))
                    return
                await context.write(encode_from_server(message))
                if isinstance(message, Goodbye):
                    await asyncio.sleep(HANG_UP_TIMEOUT_S)  # gRPC cancels this as soon as the client hangs up
                    return
        finally:
            self._sessions.discard(task)
            self._joins.leave(session, stream)

    async def _report(self, context: Context, identity: Identity | None) -> None:
        failure = await self._workers.run_or_refuse(
            context, decode_message, Failure, await self._workers.read_request(context)
        )
        receipt = await self._workers.run_or_refuse(context, self._endpoint.report, failure, identity)
        await context.write(encode_message(receipt))


class _SessionStream:
    """The `ClientLink` of one session stream. The service's threads hand messages over to the event loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop, scheduler: TransferScheduler, client: str) -> None:
        self.outgoing: asyncio.Queue[FromServer | TransportError] = asyncio.Queue()
        self._client, self._loop, self._scheduler = client, loop, scheduler

    def send(self, message: FromServer) -> None:
        """Queue a message."""
        self._loop.call_soon_threadsafe(self.outgoing.put_nowait, message)

    def cancel_transfers(self, assignment_id: int) -> None:
        """End the client's transfers of an assignment."""
        self._loop.call_soon_threadsafe(self._scheduler.cancel, self._client, assignment_id)

    def end(self, error: TransportError) -> None:
        """End the stream with an error."""
        self._loop.call_soon_threadsafe(self.outgoing.put_nowait, error)
