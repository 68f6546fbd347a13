"""The server's sessions, without a socket: which clients are connected, and which client a call belongs to.

A transport passes each call to an `Endpoint`. The endpoint looks up the session and passes the call on to the
`Service` under the client's name. Both transports use this class, so both refuse the same calls.
"""

import secrets
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

from flcore_layout import Layout

from flcore_transport.errors import Refused, TransportError
from flcore_transport.identity import Identity, PeerCertificate, ServerTls
from flcore_transport.messages import (
    PROTOCOL,
    DownloadRequest,
    Failure,
    FromServer,
    Goodbye,
    Join,
    Receipt,
    Refusal,
    UploadRequest,
    Welcome,
)
from flcore_transport.pieces import Outbox

MAX_INSTANCE_CHARACTERS = 64
MAX_REASON_BYTES = 3_000
"""The longest reason of a refusal: gRPC limits a call's metadata to 8 KiB."""

SUPERSEDED = Refused("superseded", "a newer call of this session took its place")

Peer = tuple[PeerCertificate, Identity]
"""The certificate that a call was made with, and its identity."""


class ClientLink(Protocol):
    """The service's handle of one session stream. Both methods return at once and may be called from any thread."""

    def send(self, message: FromServer) -> None:
        """Queue a message on the session's stream. It is dropped if the stream has ended."""
        ...

    def cancel_transfers(self, assignment_id: int) -> None:
        """End the client's running uploads and downloads of an assignment, even stalled ones.

        Later calls are not affected; the service has to refuse them. Any link of the client works: an older one does
        the same as the newest.
        """
        ...


class SessionStream(ClientLink, Protocol):
    """A client link as its transport implements it."""

    def end(self, error: TransportError) -> None:
        """End the stream with an error. Returns at once."""
        ...


class IncomingUpload(Protocol):
    """The server's side of one upload call. A newer call for the same answer ends the older one."""

    @property
    def received(self) -> int:
        """The number of pieces received. The client resumes there."""
        ...

    @property
    def expected(self) -> int:
        """The number of pieces of the answer."""
        ...

    def begin(self) -> "Future[None]":
        """Ask for memory for the answer. The future is done when pieces may come."""
        ...

    def accept(self, piece: bytes) -> "Future[None] | None":
        """Take the next piece.

        Returns:
            A future that is done when the next piece may come; None if it may come at once.

        Raises:
            TransportError: The piece is corrupt or unexpected, or the answer is no longer wanted.
        """
        ...

    def commit(self) -> Receipt:
        """Commit the answer, or raise a `TransportError`. A second commit returns the same receipt."""
        ...

    def end(self) -> None:
        """Called when the upload call has ended, for any reason."""
        ...


class Service(Protocol):
    """The server's logic above the transport. Methods are called from any thread and raise `Refused` to refuse a call.

    `client_connected` and `client_disconnected` are called one at a time, in the order in which streams began and
    ended, and without a lock of the transport. They must return soon, because later notifications wait for them.
    """

    def admit(self, client: str, content: bytes) -> bytes:
        """Admit a client and return the content of its welcome, or raise `Refused`."""
        ...

    def join_refused(self, client: str, reason: str) -> None:
        """Called when a join was refused because the certificate is not that of the client it names."""
        ...

    def certificate_refused(self, client: str, fingerprint: str, reason: str) -> None:
        """Called when the client's session was ended because its certificate was revoked or has expired."""
        ...

    def client_connected(self, client: str, link: ClientLink) -> None:
        """Called when a client has a new stream, after its welcome was queued. `link` reaches the client.

        A client that joins again before its old stream has ended causes two calls without a `client_disconnected`.
        """
        ...

    def client_disconnected(self, client: str) -> None:
        """Called when the client's stream has ended. The client may join again."""
        ...

    def begin_download(self, client: str, assignment_id: int) -> Outbox:
        """Return the payload of a client's assignment."""
        ...

    def begin_upload(self, client: str, assignment_id: int, content: bytes, layout: Layout) -> IncomingUpload:
        """Begin or resume the upload of a client's answer."""
        ...

    def task_failed(self, client: str, assignment_id: int, message: str) -> None:
        """Called when the client has reported a failure."""
        ...


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
    """All sessions of one server. Thread-safe."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._lock = threading.Lock()
        self._by_client: dict[str, Session] = {}
        self._by_secret: dict[str, Session] = {}
        self._goodbye: Goodbye | None = None
        self._notifications: deque[Callable[[], None]] = deque()
        self._is_notifying = False

    def join(self, join: Join, link: SessionStream, peer: Peer | None = None) -> Session:
        """Open a session or resume that of the same process, and queue its welcome as the first message."""
        if peer is not None and join.client != peer[1].name:
            reason = f"client {join.client!r} may not join: its certificate is that of {peer[1].name!r}"
            self._service.join_refused(join.client, reason)
            raise Refused("wrong-identity", reason)
        if join.protocol != PROTOCOL:
            raise Refused(
                "protocol", f"the server speaks protocol version {PROTOCOL}, client {join.client!r} {join.protocol}"
            )
        if len(join.instance) > MAX_INSTANCE_CHARACTERS:
            raise Refused("malformed", f"an instance has at most {MAX_INSTANCE_CHARACTERS} characters")
        fingerprint = peer[1].fingerprint if peer else ""
        with self._lock:
            self._find_resumed(join, fingerprint)  # a name that is taken costs the service nothing
        content = self._service.admit(join.client, join.content)  # without the lock: it compares contracts
        with self._lock:
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

    def find_session(self, secret: str, identity: Identity | None = None) -> Session:
        """Return the session that a secret belongs to, or raise `Refused`, also if another certificate opened it."""
        with self._lock:
            session = self._by_secret.get(secret)
        if session is None or session.fingerprint != (identity.fingerprint if identity else ""):
            raise Refused("unknown-session", "the server does not know this session: join again")
        return session

    def begin_download(self, request: DownloadRequest, identity: Identity | None = None) -> Outbox:
        """Return the payload that a client requests."""
        client = self.find_session(request.session_secret, identity).client
        return self._service.begin_download(client, request.assignment_id)

    def begin_upload(self, request: UploadRequest, identity: Identity | None = None) -> IncomingUpload:
        """Begin or resume an upload."""
        client = self.find_session(request.session_secret, identity).client
        return self._service.begin_upload(client, request.assignment_id, request.content, request.layout)

    def report(self, failure: Failure, identity: Identity | None = None) -> Receipt:
        """Pass a client's failure on to the service."""
        client = self.find_session(failure.session_secret, identity).client
        self._service.task_failed(client, failure.assignment_id, failure.message)
        return Receipt(failure.assignment_id)

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

    def close(self, reason: str, *, failed: bool = False) -> None:
        """Queue a goodbye for every connected client, and refuse later joins with its reason."""
        with self._lock:
            self._goodbye = Goodbye(_truncate(reason), failed)
            for session in self._by_client.values():
                if session.link is not None:
                    session.link.send(self._goodbye)

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
        if self._goodbye:
            raise Refused("over", self._goodbye.reason)
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


def to_refusal(error: TransportError) -> Refusal:
    """Return the refusal that tells a client why its call raised `error`."""
    kind = error.kind if isinstance(error, Refused) else "bad-piece"
    return Refusal(kind, _truncate(str(error)))


def _truncate(reason: str) -> str:
    """Return a reason cut to the size that fits into a call's metadata."""
    return reason.encode("utf-8", "replace")[:MAX_REASON_BYTES].decode("utf-8", "ignore")
