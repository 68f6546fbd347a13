"""The session call of the gRPC server: it pushes a service's messages to a client, up to the goodbye."""

import asyncio
import itertools
import logging
from typing import Any

import grpc

from flcore_transport.client_limits import ClientLimits
from flcore_transport.control import encode_from_server
from flcore_transport.endpoint import Endpoint, Session, to_refusal
from flcore_transport.errors import ConnectionLost, Refused, TransportError
from flcore_transport.framing import MAX_PIECE_BYTES
from flcore_transport.grpc_calls import IncomingCall, metadata_text
from flcore_transport.grpc_channel import CLIENT_METADATA, TOO_MANY_JOINS
from flcore_transport.grpc_flow_control import JobClient, TransferScheduler, shut_down_connection
from flcore_transport.grpc_heartbeat import next_message
from flcore_transport.grpc_joins import JoinQueue
from flcore_transport.grpc_workers import CallAborter, Context
from flcore_transport.hosted_jobs import HostedJobs
from flcore_transport.identity import ServerTls
from flcore_transport.messages import PROTOCOL, FromServer, Goodbye, TaskAssignment

logger = logging.getLogger(__name__)

GOODBYE_TIMEOUT_S = 3.0
"""Seconds that a closing server waits for the delivery of its goodbyes."""

HANG_UP_TIMEOUT_S = 1.0
"""Seconds that a session stays open after its goodbye, unless its client hangs up before."""

CERTIFICATE_CHECK_INTERVAL_S = 0.5
"""Seconds between two checks of the certificates of all sessions."""

SESSIONS_PER_CHECK = 64
"""The most sessions that are checked before other work of the event loop has its turn: about 0.6 ms."""


class SessionHandler:
    """Serves the sessions of all jobs of one server. All methods run on its event loop."""

    def __init__(
        self,
        jobs: HostedJobs,
        joins: JoinQueue,
        limits: ClientLimits,
        scheduler: TransferScheduler,
        aborter: CallAborter,
    ) -> None:
        self._jobs, self._joins, self._limits = jobs, joins, limits
        self._scheduler, self._aborter = scheduler, aborter
        self._running: dict[asyncio.Task[Any], IncomingCall] = {}

    async def session(self, call: IncomingCall) -> None:
        """Push the service's messages. Not a generator: a cancelled one would end at a garbage collection only."""
        loop, identity, job = asyncio.get_running_loop(), call.identity, call.endpoint.job
        if identity is not None and not self._limits.joins.take((identity.name, job), loop.time()):
            await self._aborter.abort(call.context, grpc.StatusCode.RESOURCE_EXHAUSTED, TOO_MANY_JOINS)
        client = await self._authorize(call)
        stream = _SessionStream(loop, self._scheduler, (job, client))
        session = await self._joins.accept(call, client, stream)
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - gRPC runs each call in a task
        self._running[task] = call
        try:
            await self._push(call, client, stream)
        finally:
            del self._running[task]
            self._joins.leave(call.endpoint, session, stream)

    async def wait_for_clients(self, endpoint: Endpoint) -> None:
        """Wait until the clients of an endpoint have hung up, for `GOODBYE_TIMEOUT_S` at most."""
        if running := self._tasks_of(endpoint):
            await asyncio.wait(running, timeout=GOODBYE_TIMEOUT_S)

    def shut_down(self, endpoint: Endpoint) -> None:
        """Shut down the connections of the sessions of an endpoint that are left. Their clients read nothing."""
        for task in self._tasks_of(endpoint):
            peer = self._running[task].context.peer()
            logger.info("%s does not read its goodbye: its connection is shut down", peer)
            # On a thread: it examines every file descriptor of the process.
            asyncio.get_running_loop().run_in_executor(None, shut_down_connection, peer)

    async def watch_certificates(self, tls: ServerTls) -> None:
        """End sessions and transfers whose certificate has expired or been revoked since they began."""
        was_failing = False
        while True:
            await asyncio.sleep(CERTIFICATE_CHECK_INTERVAL_S)
            failure: Exception | None = None
            sessions = [(each, session) for each in self._jobs.endpoints() for session in each.sessions()]
            for index, (endpoint, session) in enumerate(sessions, 1):
                # An error that is no refusal does not end the session, and must not end this task. The same error
                # fails the client's next call.
                try:
                    self._end_if_refused(endpoint, session, tls)
                except Exception as error:  # noqa: BLE001 - tried again at the next check
                    failure = error
                if index % SESSIONS_PER_CHECK == 0:
                    await asyncio.sleep(0)
            if failure is not None and not was_failing:
                logger.error("certificates of sessions cannot be checked, which is tried again", exc_info=failure)
            was_failing = failure is not None

    def _end_if_refused(self, endpoint: Endpoint, session: Session, tls: ServerTls) -> None:
        if error := endpoint.end_refused_session(session, tls):
            logger.info("ended the session of %s: %s", session.client, error)
            self._scheduler.end_client((endpoint.job, session.client))
            self._joins.notify_service(endpoint)

    def _tasks_of(self, endpoint: Endpoint) -> list[asyncio.Task[Any]]:
        return [task for task, call in self._running.items() if call.endpoint is endpoint]

    async def _authorize(self, call: IncomingCall) -> str:
        """Return the name of the client that joins; refuse the call, unread, if that client may not join."""
        sent = metadata_text(call.context, CLIENT_METADATA)
        client = sent or ""
        try:
            if sent is None:
                raise Refused(
                    "protocol",
                    f"the server speaks protocol version {PROTOCOL}, in which a join has its client's name in the "
                    f"metadata {CLIENT_METADATA}, and this one has none; install the server's version of flcore",
                )
            call.endpoint.authorize(client, call.peer)
        except Refused as error:
            call.endpoint.queue_refused_join(client, error)
            self._joins.notify_service(call.endpoint)
            await self._aborter.refuse(call.context, to_refusal(error))
        return client

    async def _push(self, call: IncomingCall, client: str, stream: "_SessionStream") -> None:
        context: Context = call.context
        for sent in itertools.count():
            message = await next_message(stream.outgoing, sent)
            if isinstance(message, ConnectionLost):
                await self._aborter.abort(context, grpc.StatusCode.UNAVAILABLE, str(message))
                return
            if isinstance(message, TransportError):
                await self._aborter.refuse(context, to_refusal(message))
                return
            encoded = encode_from_server(message)
            if isinstance(message, TaskAssignment) and len(encoded) > MAX_PIECE_BYTES:
                # gRPC would end the session. The client would join again, be sent it again, and so on without an end.
                call.endpoint.queue_unsendable(client, message, len(encoded), MAX_PIECE_BYTES)
                self._joins.notify_service(call.endpoint)
                continue
            await context.write(encoded)
            if isinstance(message, Goodbye):
                await asyncio.sleep(HANG_UP_TIMEOUT_S)  # gRPC cancels this as soon as the client hangs up
                return


class _SessionStream:
    """The `ClientLink` of one session stream. The service's threads hand messages over to the event loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop, scheduler: TransferScheduler, client: JobClient) -> None:
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
