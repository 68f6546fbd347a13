"""The gate of each call: who calls, for which job, and whether the call may go on. Nothing of the call is read before.

The checks, in this order: its certificate is accepted, its role may make it, its job is hosted, its caller has not too
many calls, and it carries the secret of a session of that job. An ask needs no session, and belongs to no job.
"""

import asyncio
from collections.abc import Awaitable, Callable, Collection, Hashable
from dataclasses import dataclass
from functools import wraps
from typing import Any

import grpc
import grpc.aio

from flcore_transport.client_limits import MAX_ASKS_PER_CALLER, ClientLimits
from flcore_transport.endpoint import JOB_FAILED, JOB_OVER, NO_SUCH_JOB, Endpoint, Peer, to_refusal
from flcore_transport.errors import Refused, TransportError
from flcore_transport.grpc_channel import JOB_METADATA, SESSION_METADATA, TOO_MANY_CALLS
from flcore_transport.grpc_tls import peer_certificate, require_tls_version
from flcore_transport.grpc_workers import CallAborter, Context
from flcore_transport.hosted_jobs import HostedJobs
from flcore_transport.identity import ASKING_ROLES, CLIENT_ROLE, Identity, ServerTls

UNREPORTED = (NO_SUCH_JOB, JOB_OVER, JOB_FAILED)
"""Refusals that an honest client gets when the server has restarted, or its job has ended meanwhile."""


@dataclass(frozen=True, slots=True)
class IncomingCall:
    """A call that has passed the gate.

    Attributes:
        context: gRPC's side of the call.
        endpoint: The endpoint of the call's job.
        peer: The certificate that it was made with, and its identity; None over plaintext.
    """

    context: Context
    endpoint: Endpoint
    peer: Peer | None

    @property
    def identity(self) -> Identity | None:
        """The caller; None over plaintext."""
        return None if self.peer is None else self.peer[1]


Handler = Callable[[IncomingCall], Awaitable[None]]
GrpcHandler = Callable[[Any, Context], Awaitable[None]]


class CallGate:
    """The gate of one server. All methods run on its event loop.

    Args:
        jobs: The jobs that calls can be for.
        tls: For mutual TLS; None for plaintext.
        limits: The limits per client.
        aborter: Ends the calls that are refused.
        notify: Has an endpoint deliver its reports on another thread.
    """

    def __init__(
        self,
        jobs: HostedJobs,
        tls: ServerTls | None,
        limits: ClientLimits,
        aborter: CallAborter,
        notify: Callable[[Endpoint], None],
    ) -> None:
        self._jobs, self._tls, self._limits, self._aborter, self._notify = jobs, tls, limits, aborter, notify

    def limited(self, handler: Handler) -> GrpcHandler:
        """Return a handler for clients, each with a limited number of calls."""

        @wraps(handler)
        async def call(_: Any, context: Context) -> None:
            peer = await self._identify(context, (CLIENT_ROLE,))
            endpoint = await self._find_endpoint(context, peer)
            incoming = IncomingCall(context, endpoint, peer)
            if peer is None:
                await handler(incoming)
                return
            client = (*_caller(peer[1]), endpoint.job)
            if not self._limits.begin_call(client):
                await self._refuse_unread(context)
            try:
                await handler(incoming)
            finally:
                self._limits.end_call(client)

        return call

    def authenticated(self, handler: Handler) -> GrpcHandler:
        """Return a handler that refuses calls without the secret of a session of their job."""

        @wraps(handler)
        async def call(incoming: IncomingCall) -> None:
            try:
                secret = metadata_text(incoming.context, SESSION_METADATA) or ""
                incoming.endpoint.find_session(secret, incoming.identity)
            except TransportError as error:
                await self.refuse(incoming, error)
            await handler(incoming)

        return self.limited(call)

    def asking(self, handler: Handler) -> GrpcHandler:
        """Return a handler for every member of the federation, each with a limited number of asks."""

        @wraps(handler)
        async def call(_: Any, context: Context) -> None:
            peer = await self._identify(context, ASKING_ROLES)
            incoming = IncomingCall(context, self._jobs.first, peer)
            caller: Hashable = context.peer() if peer is None else _caller(peer[1])
            if not self._limits.begin_ask(caller):
                await self.refuse(
                    incoming,
                    Refused("too-many-asks", f"expected at most {MAX_ASKS_PER_CALLER} asks at a time; ask again later"),
                )
            try:
                await handler(incoming)
            finally:
                self._limits.end_ask(caller)

        return call

    def require_accepted(self, call: IncomingCall) -> None:
        """Raise `Refused` if the certificate of a call is not accepted any more."""
        if self._tls is not None and call.peer is not None:
            self._tls.identify(call.peer[0])

    async def refuse(self, call: IncomingCall, error: TransportError, *, is_reason_due: bool = False) -> None:
        """Refuse a call and report it, unless its certificate has had too many refusals.

        A call beyond those ends without a reason, unless `is_reason_due`.
        """
        identity = call.identity
        client, fingerprint = ("", "") if identity is None else (identity.name, identity.fingerprint)
        await self._refuse(call.context, call.endpoint, client, fingerprint, error, is_reason_due=is_reason_due)

    async def _identify(self, context: Context, roles: Collection[str]) -> Peer | None:
        """Return the peer of a call, None over plaintext; refuse it if its certificate or its role is not accepted."""
        if self._tls is None:
            return None
        certificate = peer_certificate(context)
        try:
            require_tls_version(certificate)
            identity = self._tls.identify(certificate)
            _require_role(identity, roles)
        except TransportError as error:
            await self._refuse(context, self._jobs.first, "", certificate.fingerprint, error)
            raise  # not reached: refuse has raised
        return certificate, identity

    async def _find_endpoint(self, context: Context, peer: Peer | None) -> Endpoint:
        """Return the endpoint of a call's job; refuse the call if the job is over, or is not hosted."""
        try:
            return self._jobs.find(metadata_text(context, JOB_METADATA) or "")
        except Refused as error:
            await self._refuse(context, self._jobs.first, "", "" if peer is None else peer[1].fingerprint, error)
            raise  # not reached: refuse has raised

    async def _refuse(
        self,
        context: Context,
        endpoint: Endpoint,
        client: str,
        fingerprint: str,
        error: TransportError,
        *,
        is_reason_due: bool = False,
    ) -> None:
        refused = to_refusal(error)
        is_reported = refused.kind not in UNREPORTED
        # Clients that wait for a job do not use up the refusals that are reported.
        key = fingerprint, is_reported
        if fingerprint and not self._limits.refusals.take(key, asyncio.get_running_loop().time()):
            is_reported = False
            if not is_reason_due:
                await self._refuse_unread(context)
        if is_reported:
            endpoint.queue_refused_call(client, fingerprint, error)
            self._notify(endpoint)
        await self._aborter.refuse(context, refused)

    async def _refuse_unread(self, context: Context) -> None:
        await self._aborter.abort(context, grpc.StatusCode.RESOURCE_EXHAUSTED, TOO_MANY_CALLS)


def metadata_text(context: Context, key: str) -> str | None:
    """Return a value of a call's metadata as text, or None. The name of its key ends in -bin: gRPC passes bytes on."""
    value = dict(context.invocation_metadata() or ()).get(key)
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value


def _caller(identity: Identity) -> tuple[str, str]:
    """Return the key of a caller's limits. A lead may have the name of a client."""
    return identity.role, identity.name


def _require_role(identity: Identity, roles: Collection[str]) -> None:
    if identity.role not in roles:
        raise Refused(
            "role",
            f"the certificate of {identity.role} {identity.name}: expected the role {' or '.join(roles)}, "
            f"got {identity.role}; use that role's certificate",
        )
