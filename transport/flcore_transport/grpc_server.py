"""The gRPC server: one port, five calls, no thread per client.

Calls are coroutines on an asyncio loop (`grpc_event_loop`), so a thousand idle clients cost a thousand coroutines and
no thread. Work that may block the loop (checking a piece, committing an answer) runs on a few worker threads, one piece
at a time per call. A slow client holds no thread while it is slow.

Peers that have not joined have bounded cost: a connection without calls is closed, a call without a session's secret
ends before its first message is read, so does a join of a client that may not join (`grpc_calls`), and only a few joins
are read at a time (`grpc_joins`).

A server can host several jobs beside its first service (`hosted_jobs`). They share its port, threads and limits.
"""

import asyncio
import errno
import resource
import socket
from collections.abc import Callable

import grpc
import grpc.aio

from flcore_transport.client_limits import ClientLimits
from flcore_transport.control import decode_message, encode_message
from flcore_transport.endpoint import Endpoint
from flcore_transport.errors import AddressUnavailable, TransportError
from flcore_transport.flow_control import DEFAULT_IN_FLIGHT_BYTES, WINDOW_PIECES, FlowControl
from flcore_transport.grpc_asks import Answer, AskHandler
from flcore_transport.grpc_calls import CallGate, IncomingCall
from flcore_transport.grpc_channel import MAX_CONNECTIONS, OPTIONS, SERVICE, join_address, require_loopback
from flcore_transport.grpc_event_loop import server_event_loop
from flcore_transport.grpc_flow_control import TransferScheduler
from flcore_transport.grpc_joins import JoinQueue
from flcore_transport.grpc_sessions import SessionHandler
from flcore_transport.grpc_tls import server_credentials
from flcore_transport.grpc_transfers import TransferHandlers
from flcore_transport.grpc_workers import CallAborter, WorkerPool
from flcore_transport.hosted_jobs import HostedJobs
from flcore_transport.identity import ServerTls
from flcore_transport.messages import Failure
from flcore_transport.pieces import PIECE_BODY_BYTES
from flcore_transport.service import Service

STOP_TIMEOUT_S = 1.0
"""Seconds that other calls may continue before gRPC cuts them."""

HANDSHAKE_TIMEOUT_S = 10
"""Seconds that a connection has for the HTTP/2 handshake."""

IDLE_TIMEOUT_S = 30
"""Seconds after which a connection without calls is closed."""

RESERVED_DESCRIPTORS = 256
"""File descriptors kept for files and libraries, but at most half of the process's limit."""

MIN_PING_INTERVAL_MS = 10_000
"""Milliseconds between pings of an honest client without data. One that comes sooner is a strike."""

MAX_PING_STRIKES = 10
"""The most strikes of a connection since it last got data. After that it is closed."""

SERVER_OPTIONS = [
    *OPTIONS,
    # As much as `FlowControl` ever grants one transfer. An unauthenticated call can send as much before it is ended
    # (docs/security.md). A window of 64 KiB would cut a distant client's rate to a sixth, since a piece would take two
    # round trips. With the bandwidth probe starting at 64 KiB, sixty unauthenticated calls held as much memory.
    ("grpc.http2.lookahead_bytes", WINDOW_PIECES * PIECE_BODY_BYTES),
    # Without this a second server could bind the same port and take every other client.
    ("grpc.so_reuseport", 0),
    ("grpc.http2.min_ping_interval_without_data_ms", MIN_PING_INTERVAL_MS),
    ("grpc.http2.max_ping_strikes", MAX_PING_STRIKES),
    ("grpc.server_handshake_timeout_ms", HANDSHAKE_TIMEOUT_S * 1000),
    ("grpc.max_connection_idle_ms", IDLE_TIMEOUT_S * 1000),
]


def connection_limit(max_connections: int = MAX_CONNECTIONS) -> int:
    """Return the most connections of a server, within the limit of file descriptors less the reserved ones."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return max_connections
    return min(max_connections, max(soft - RESERVED_DESCRIPTORS, soft // 2))


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
    """Serves a `Service`, and those of hosted jobs, until closed.

    Args:
        service: The server's logic. Calls that name no job are for it.
        host: The address to listen on.
        port: The port; 0 takes a free one.
        tls: For mutual TLS. Default: None, plaintext.
        allow_remote: Whether plaintext may be served beyond loopback.
        in_flight_bytes: The most bytes of pieces in flight over all transfers, including gRPC's copies.
        max_connections: The most connections at a time, idle ones and unfinished handshakes included. Further ones are
            closed as they come, and their clients try again.
        answer: Answers requests that need no session (`GrpcConnection.ask`); see `Answer`. Default: None, they are
            refused.
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
        max_connections: int = MAX_CONNECTIONS,
        answer: Answer | None = None,
    ) -> None:
        if tls is None and not allow_remote:
            require_loopback(host)
        self._jobs, self._tls = HostedJobs(Endpoint(service)), tls
        self._aborter, self._limits = CallAborter(), ClientLimits()
        self._workers = WorkerPool(self._aborter)
        # gRPC holds a second copy of each piece in flight.
        self._scheduler = TransferScheduler(FlowControl(in_flight_bytes // (2 * PIECE_BODY_BYTES)), self._aborter)
        self._transfers = TransferHandlers(self._workers, self._scheduler)
        self._joins = JoinQueue(self._aborter)
        self._sessions = SessionHandler(self._jobs, self._joins, self._limits, self._scheduler, self._aborter)
        self._gate = CallGate(self._jobs, tls, self._limits, self._aborter, self._joins.notify_service)
        self._asks = AskHandler(answer, self._gate, self._aborter)
        self._max_connections = max_connections
        self._loop = server_event_loop()
        self._is_closed = False
        self._certificate_watch: asyncio.Task[None] | None = None
        bound = asyncio.run_coroutine_threadsafe(self._start(host, port), self._loop).result()
        self.address = join_address(host, bound)

    def host(self, job: str, service: Service) -> "HostedJob":
        """Serve one more job on this server's port: the calls that name it, by `GrpcConnection(job=...)`.

        Args:
            job: The job's id.
            service: The job's logic.

        Returns:
            The job's own server, which can be closed alone.

        Raises:
            ValueError: The job has no id, or is hosted already.
            TransportError: The server is closed.
        """
        endpoint = self._jobs.host(job, service)
        if self._is_closed:
            self._jobs.remove(endpoint)
            raise TransportError(f"the server at {self.address} is closed, and hosts no more jobs")
        return HostedJob(self.address, endpoint, self._stop_job)

    def close(self, reason: str = "the server has stopped", *, failed: bool = False) -> None:
        """Deliver goodbyes to all clients, end all calls and free the port. May be called twice.

        Clients of jobs that are still hosted get no goodbye, as their jobs are not over.

        Args:
            reason: Why the job has ended, for the clients.
            failed: Whether the job has failed.
        """
        if not self._is_closed:
            self._jobs.first.close(reason, failed=failed)
            # gRPC closes the sockets when it stops, and a reset discards what the client has not read. So the port and
            # the sessions stay open until the clients have hung up: a client that loses its goodbye would wait for this
            # server as for one that restarts. A client that joins meanwhile is refused, with the reason.
            waiting = self._sessions.wait_for_clients(self._jobs.first)
            asyncio.run_coroutine_threadsafe(waiting, self._loop).result()
            self.leave()

    def leave(self) -> None:
        """End all calls and free the port, without a goodbye: clients wait for the next server. May be called twice."""
        if self._is_closed:
            return
        self._is_closed = True
        for endpoint in self._jobs.hosted():
            endpoint.leave_job()
        asyncio.run_coroutine_threadsafe(self._stop(), self._loop).result()
        self._workers.close()
        self._joins.close()
        self._asks.close()

    @staticmethod
    def require_free(host: str, port: int) -> None:
        """Raise `AddressUnavailable` unless a server can listen at an address now."""
        reason = bind_error(host, port)
        if reason:
            raise AddressUnavailable(f"cannot listen on {join_address(host, port)}: {reason}")

    async def _start(self, host: str, port: int) -> int:
        options = [*SERVER_OPTIONS, ("grpc.max_allowed_incoming_connections", connection_limit(self._max_connections))]
        self._server = grpc.aio.server(options=options)
        # All are stream handlers: gRPC would read the request of a unary one before the call could be refused.
        handlers: dict[str, grpc.RpcMethodHandler[bytes, bytes]] = {
            "Session": grpc.stream_stream_rpc_method_handler(self._gate.limited(self._sessions.session)),
            "Download": grpc.stream_stream_rpc_method_handler(self._gate.authenticated(self._transfers.download)),
            "Upload": grpc.stream_stream_rpc_method_handler(self._gate.authenticated(self._transfers.upload)),
            "Report": grpc.stream_stream_rpc_method_handler(self._gate.authenticated(self._report)),
            "Ask": grpc.stream_stream_rpc_method_handler(self._gate.asking(self._asks.ask)),
        }
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
        address = join_address(host, port)
        self.require_free(host, port)  # gRPC logs a failure itself
        try:
            if self._tls is None:
                bound = self._server.add_insecure_port(address)
            else:
                bound = self._server.add_secure_port(address, server_credentials(self._tls))
        except RuntimeError as error:
            raise AddressUnavailable(f"cannot listen on {address}: {bind_error(host, port) or error}") from error
        await self._server.start()
        if self._tls is not None:
            self._certificate_watch = asyncio.ensure_future(self._sessions.watch_certificates(self._tls))
        return bound

    async def _stop(self) -> None:
        """Cut the calls that are left."""
        if self._certificate_watch is not None:
            self._certificate_watch.cancel()

        async def stop() -> None:
            await self._server.stop(STOP_TIMEOUT_S)
            self._aborter.is_stopping = True

        stopping = asyncio.ensure_future(stop())
        await asyncio.wait({stopping}, timeout=STOP_TIMEOUT_S / 2)
        self._aborter.is_stopping = True  # well before gRPC ends the calls that are left
        await stopping

    def _stop_job(self, endpoint: Endpoint) -> None:
        asyncio.run_coroutine_threadsafe(self._end_job(endpoint), self._loop).result()

    async def _end_job(self, endpoint: Endpoint) -> None:
        """Wait until the clients of a job have its goodbye, then end their calls that are left."""
        await self._sessions.wait_for_clients(endpoint)
        self._jobs.remove(endpoint)
        self._sessions.shut_down(endpoint)
        self._scheduler.end_job(endpoint.job)

    async def _report(self, call: IncomingCall) -> None:
        failure = await self._workers.run_or_refuse(
            call.context, decode_message, Failure, await self._workers.read_request(call.context)
        )
        receipt = await self._workers.run_or_refuse(call.context, call.endpoint.report, failure, call.identity)
        await call.context.write(encode_message(receipt))


class HostedJob:
    """One job of a server: its address, and its end. Other jobs of the server go on.

    Attributes:
        address: The server's address.
    """

    def __init__(self, address: str, endpoint: Endpoint, stop: Callable[[Endpoint], None]) -> None:
        self.address = address
        self._endpoint, self._stop = endpoint, stop

    def close(self, reason: str = "the job has ended", *, failed: bool = False) -> None:
        """Deliver goodbyes to the job's clients, and end their calls. May be called twice.

        A client that comes back later is refused with the reason, as long as the server remembers it.

        Args:
            reason: Why the job has ended, for the clients.
            failed: Whether the job has failed.
        """
        if self._endpoint.close(reason, failed=failed):
            self._stop(self._endpoint)

    def leave(self) -> None:
        """End all calls of the job without a goodbye: its clients wait until it is hosted again."""
        if self._endpoint.leave_job():
            self._stop(self._endpoint)
