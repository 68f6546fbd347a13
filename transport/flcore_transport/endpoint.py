"""The server's sessions, without a socket: which clients are connected, and which client a call belongs to.

A transport passes each call to an `Endpoint`. The endpoint looks up the session and passes the call on to the
`Service` under the client's name. Both transports use this class, so both refuse the same calls.
"""

import logging
import secrets
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial

from flcore_transport.errors import ConnectionLost, CorruptMessage, Refused, TransportError
from flcore_transport.identity import Identity, PeerCertificate, ServerTls
from flcore_transport.messages import (
    PROTOCOL,
    DownloadRequest,
    Failure,
    Goodbye,
    Join,
    Receipt,
    Refusal,
    TaskAssignment,
    UploadRequest,
    Welcome,
)
from flcore_transport.pieces import Outbox
from flcore_transport.service import IncomingUpload, Service, SessionStream

logger = logging.getLogger(__name__)

MAX_INSTANCE_CHARACTERS = 64
MAX_REASON_BYTES = 3_000
"""The longest reason of a refusal: gRPC limits a call's metadata to 8 KiB."""

JOB_OVER, JOB_FAILED = "over", "failed"
"""Kinds of refusals of a join after the goodbye, which stand for it: the client was disconnected when it was sent."""
UNKNOWN_SESSION = "unknown-session"
"""The kind of refusal of a call whose session the server does not know, as after its restart."""
NO_SUCH_JOB = "no-such-job"
"""The kind of refusal of a call for a job that the server does not host, as after its restart: it may host it soon."""

MAX_PENDING_REPORTS = 1_000
"""The most notifications that wait for the service, beyond which a refusal is not reported. A slow disk delays them."""

SUPERSEDED = Refused("superseded", "a newer call of this session took its place")

Peer = tuple[PeerCertificate, Identity]
"""The certificate that a call was made with, and its identity."""


@dataclass(eq=False)
class Session:
    """One client process under its name. It outlives streams: the secret stays valid over reconnects of the process."""

    client: str
    instance: str
    secret: str = field(default_factory=lambda: secrets.token_urlsafe(24))
    link: SessionStream | None = None
    peer: Peer | None = None
    """The certificate that the client joined with, and its identity; None over plaintext."""

    @property
    def fingerprint(self) -> str:
        """The certificate's. A call with another certificate is not of this session, even under the same name."""
        return self.peer[1].fingerprint if self.peer else ""


class Endpoint:
    """All sessions of one service. Thread-safe.

    Attributes:
        job: The id of the service's job, on a server that hosts several; empty for its first service.
    """

    def __init__(self, service: Service, job: str = "") -> None:
        self.job = job
        self._service = service
        self._has_left = False
        self._lock = threading.Lock()
        self._by_client: dict[str, Session] = {}
        self._by_secret: dict[str, Session] = {}
        self._goodbye: Goodbye | None = None
        self._notifications: deque[Callable[[], None]] = deque()
        self._is_notifying = False
        self._omitted_reports = 0

    def authorize(self, client: str, peer: Peer | None = None) -> None:
        """Raise `Refused` unless a client may join, by its certificate and its name alone. Returns at once."""
        if peer is not None and client != peer[1].name:
            raise Refused(
                "wrong-identity", f"client {client!r} may not join: its certificate is that of {peer[1].name!r}"
            )
        self._service.authorize(client)

    def join(self, join: Join, link: SessionStream, peer: Peer | None = None) -> Session:
        """Open a session or resume that of the same process, and queue its welcome as the first message."""
        fingerprint = peer[1].fingerprint if peer else ""
        with self.reporting_joins(join.client):
            self.authorize(join.client, peer)
            _check_join(join)
            with self._lock:
                self._find_resumed(join, fingerprint)  # a name that is taken costs the service nothing
        content = self._service.admit(join.client, join.content)  # without the lock: it compares contracts
        with self.reporting_joins(join.client), self._lock:
            session = self._find_resumed(join, fingerprint) or self._register(
                Session(join.client, join.instance, peer=peer)
            )
            if session.link is not None:
                session.link.end(SUPERSEDED)
            session.link = link
            link.send(Welcome(session.secret, content))
            self._notifications.append(partial(self._service.client_connected, join.client, link))
        self.notify_service()
        return session

    def leave(self, session: Session, link: SessionStream) -> None:
        """Record that the stream of `link` has ended. Does nothing if the session has a newer stream.

        Returns at once. The caller then calls `notify_service` on a thread that may block.
        """
        with self._lock:
            if session.link is not link:
                return
            session.link = None
            self._notifications.append(partial(self._service.client_disconnected, session.client))

    @contextmanager
    def reporting_joins(self, client: str) -> Iterator[None]:
        """A block whose `Refused` is reported to the service as a refused join. It may block: not on an event loop."""
        try:
            yield
        except Refused as error:
            self.queue_refused_join(client, error)
            self.notify_service()
            raise

    def queue_refused_join(self, client: str, error: Refused) -> None:
        """Queue the report of a refused join. Returns at once; the caller then calls `notify_service`."""
        if error.kind not in (JOB_OVER, NO_SUCH_JOB):  # the job is ending here, and tells each client so
            self._queue_report(partial(self._service.join_refused, client, str(error)))

    def queue_refused_call(self, client: str, fingerprint: str, error: TransportError) -> None:
        """Queue the report of a refused call. Returns at once; the caller then calls `notify_service`."""
        refused = to_refusal(error)
        self._queue_report(partial(self._service.call_refused, client, fingerprint, refused.kind, refused.message))

    def queue_unsendable(self, client: str, assignment: TaskAssignment, nbytes: int, limit: int) -> None:
        """Queue the failure of a client's task that is too large to be sent. Returns at once, as above."""
        reason = f"expected an assignment of at most {limit:,} bytes, got {nbytes:,} bytes, which cannot be sent"
        logger.error("assignment %d of %s is not sent: %s", assignment.assignment_id, client, reason)

        def fail() -> None:
            with suppress(Refused):  # its service has closed it meanwhile
                self._service.task_failed(client, assignment.assignment_id, assignment.token, reason)

        with self._lock:
            self._notifications.append(fail)

    def _queue_report(self, report: Callable[[], None]) -> None:
        with self._lock:
            if len(self._notifications) < MAX_PENDING_REPORTS:
                self._notifications.append(report)
                return
            self._omitted_reports += 1
            if self._omitted_reports.bit_count() == 1:  # 1, 2, 4, ...: a flood leaves some lines
                logger.warning("%d refusals were not reported: the audit log is too slow", self._omitted_reports)

    def find_session(self, secret: str, identity: Identity | None = None) -> Session:
        """Return the session that a secret belongs to, or raise `Refused`, also if another certificate opened it."""
        with self._lock:
            session = self._by_secret.get(secret)
            if self._has_left:
                raise no_such_job(self.job)
        if session is None or session.fingerprint != (identity.fingerprint if identity else ""):
            raise Refused(UNKNOWN_SESSION, "the server does not know this session: join again")
        return session

    def client_of(self, secret: str, identity: Identity | None = None) -> str:
        """Return the client of a session, or raise `Refused` and report it. It may block: not on an event loop."""
        try:
            return self.find_session(secret, identity).client
        except Refused as error:
            self.queue_refused_call(identity.name if identity else "", identity.fingerprint if identity else "", error)
            self.notify_service()
            raise

    def begin_download(self, request: DownloadRequest, identity: Identity | None = None) -> Outbox:
        """Return the payload that a client requests."""
        client = self.client_of(request.session_secret, identity)
        return self._service.begin_download(client, request.assignment_id, request.token)

    def begin_upload(self, request: UploadRequest, identity: Identity | None = None) -> IncomingUpload:
        """Begin or resume an upload."""
        client = self.client_of(request.session_secret, identity)
        return self._service.begin_upload(client, request.assignment_id, request.token, request.content, request.layout)

    def report(self, failure: Failure, identity: Identity | None = None) -> Receipt:
        """Pass a client's failure on to the service."""
        client = self.client_of(failure.session_secret, identity)
        self._service.task_failed(client, failure.assignment_id, failure.token, failure.message)
        return Receipt(failure.assignment_id)

    @property
    def farewell(self) -> Refused | None:
        """The refusal that stands for the goodbye, for clients that come back after it; None before a goodbye."""
        if self._goodbye is None:
            return None
        return Refused(JOB_FAILED if self._goodbye.failed else JOB_OVER, self._goodbye.reason)

    def sessions(self) -> list[Session]:
        """Return all sessions, also those without a stream."""
        with self._lock:
            return list(self._by_client.values())

    def end_refused_session(self, session: Session, tls: ServerTls) -> Refused | None:
        """End a session if its certificate is refused by now. Returns the reason, or None if the session stays."""
        if session.peer is None:
            return None
        certificate, identity = session.peer
        try:
            tls.identify(certificate)
        except Refused as error:
            self._end_session(session, identity.fingerprint, error)
            return error
        return None

    def _end_session(self, session: Session, fingerprint: str, error: Refused) -> None:
        """End a session: its stream, and its secret."""
        with self._lock:
            if self._by_client.get(session.client) is session:
                del self._by_client[session.client], self._by_secret[session.secret]
                refused = partial(self._service.certificate_refused, session.client, fingerprint, str(error))
                self._notifications.append(refused)
            if session.link is not None:
                session.link.end(error)
                # Not in `leave`, which comes later: the client may have joined anew by then, with a new certificate.
                session.link = None
                self._notifications.append(partial(self._service.client_disconnected, session.client))

    def close(self, reason: str, *, failed: bool = False) -> bool:
        """Queue a goodbye for every connected client, and refuse later joins with its reason.

        Returns:
            Whether the job went on until now. If it did not, nothing changes.
        """
        with self._lock:
            if self._goodbye or self._has_left:
                return False
            self._goodbye = Goodbye(_truncate(reason), failed)
            for session in self._by_client.values():
                if session.link is not None:
                    session.link.send(self._goodbye)
        return True

    def leave_job(self) -> bool:
        """End every stream without a goodbye, and refuse later joins: their clients wait until the job is hosted again.

        Returns:
            Whether the job went on until now. If it did not, nothing changes.
        """
        with self._lock:
            if self._goodbye or self._has_left:
                return False
            self._has_left = True
            for session in self._by_client.values():
                if session.link is not None:
                    session.link.end(ConnectionLost("the server has left this job"))
        return True

    def notify_service(self) -> None:
        """Deliver queued notifications to the service, in order and without the lock.

        If another thread is delivering, it delivers the new ones too, and this call returns.
        """
        while True:
            with self._lock:
                if self._is_notifying or not self._notifications:
                    return
                notification, self._is_notifying = self._notifications.popleft(), True
            try:
                notification()
            finally:
                with self._lock:
                    self._is_notifying = False

    def _find_resumed(self, join: Join, fingerprint: str) -> Session | None:
        """Return the session of the same process and certificate, None for a new one; or raise `Refused`. Locked."""
        if farewell := self.farewell:
            raise farewell
        if self._has_left:
            raise no_such_job(self.job)
        session = self._by_client.get(join.client)
        if session is None or (session.instance, session.fingerprint) == (join.instance, fingerprint):
            return session
        if session.link is not None:
            raise Refused("name-taken", f"a client named {join.client!r} is connected already")
        return None

    def _register(self, new: Session) -> Session:
        if old := self._by_client.get(new.client):
            del self._by_secret[old.secret]
        self._by_client[new.client] = self._by_secret[new.secret] = new
        return new


def _check_join(join: Join) -> None:
    if join.protocol != PROTOCOL:
        raise Refused(
            "protocol", f"the server speaks protocol version {PROTOCOL}, client {join.client!r} {join.protocol}"
        )
    if len(join.instance) > MAX_INSTANCE_CHARACTERS:
        raise Refused("malformed", f"an instance has at most {MAX_INSTANCE_CHARACTERS} characters")


def no_such_job(job: str) -> Refused:
    """Return the refusal of a call for a job that is not hosted."""
    return Refused(NO_SUCH_JOB, f"the server does not run the job {job[:100]!r} now; it may begin later")


def to_refusal(error: TransportError) -> Refusal:
    """Return the refusal that tells a client why its call raised `error`."""
    kind = error.kind if isinstance(error, Refused | CorruptMessage) else "bad-piece"
    return Refusal(kind, _truncate(str(error)))


def _truncate(reason: str) -> str:
    """Return a reason cut to the size that fits into a call's metadata."""
    return reason.encode("utf-8", "replace")[:MAX_REASON_BYTES].decode("utf-8", "ignore")
