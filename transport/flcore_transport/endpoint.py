"""The server's end without a socket: who is connected, and which call belongs to whom.

A transport hands every call to an `Endpoint`, which knows the sessions and passes the call on to the `Service` above
under the client's name. Both transports run on this class, so whatever it refuses is refused on both.
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

SUPERSEDED = Refused("superseded", "a newer call of this session took its place")


Peer = tuple[PeerCertificate, Identity]


class ClientLink(Protocol):
    """One stream to one client. Both methods return at once and may be called from any thread, at any time."""

    def send(self, message: FromServer) -> None:
        """Put a message on the session's stream. It is dropped where the stream has ended."""
        ...

    def cancel_transfers(self, assignment_id: int) -> None:
        """End the client's transfers of an order, whichever way they go and whether or not they move.

        It holds for those that are under way: the service refuses the calls that come after. The client may have
        departed, and a link that is not its newest one does the same.
        """
        ...


class SessionStream(ClientLink, Protocol):
    """A link as a transport has it."""

    def end(self, error: TransportError) -> None:
        """End the stream, and say why. Returns at once."""
        ...


class IncomingUpload(Protocol):
    """One answer on its way in. A newer delivery of the same answer ends the older one."""

    @property
    def received(self) -> int:
        """How many pieces are in; the client goes on from there."""
        ...

    @property
    def expected(self) -> int:
        """How many pieces it has in all."""
        ...

    def begin(self) -> "Future[None]":
        """Pieces could come now; the future is done as soon as they may."""
        ...

    def accept(self, piece: bytes) -> "Future[None] | None":
        """Take the next piece, or raise a `TransportError`.

        Returns a future that is done as soon as the piece after it may come, or None where it may at once.
        """
        ...

    def commit(self) -> Receipt:
        """Make the answer count, or raise a `TransportError`; a second time gives the same receipt."""
        ...

    def end(self) -> None:
        """The call that brought it has ended, for whatever reason."""
        ...


class Service(Protocol):
    """What stands above the transport on the server. Any thread may call; `Refused` says no to the client.

    `client_connected` and `client_disconnected` are called one at a time, in the order in which streams began and
    ended, without a lock of the transport; they must return soon, as others wait for them.
    """

    def admit(self, client: str, content: bytes) -> bytes:
        """Let a client in, and return the content of its welcome; or raise `Refused`."""
        ...

    def client_connected(self, client: str, link: ClientLink) -> None:
        """The client can be reached through `link` from now on; its welcome has been sent.

        It comes for each stream, so twice without a `client_disconnected` where a client joins again before its old
        stream is gone.
        """
        ...

    def client_disconnected(self, client: str) -> None:
        """The client's stream is gone; it may come back."""
        ...

    def begin_download(self, client: str, assignment_id: int) -> Outbox:
        """Return the payload of a client's order."""
        ...

    def begin_upload(self, client: str, assignment_id: int, content: bytes, layout: Layout) -> IncomingUpload:
        """Begin, or go on with, a client's answer to its order."""
        ...

    def task_failed(self, client: str, assignment_id: int, message: str) -> None:
        """The client could not do its order."""
        ...


@dataclass(eq=False)
class Session:
    """A client's claim to its name. The secret stays valid over reconnects of the same process."""

    client: str
    instance: str
    secret: str = field(default_factory=lambda: secrets.token_urlsafe(24))
    link: SessionStream | None = None
    certificate: PeerCertificate | None = None
    """The one that the client joined with; None over plaintext."""


class Endpoint:
    """All sessions of one server."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._lock = threading.Lock()
        self._by_client: dict[str, Session] = {}
        self._by_secret: dict[str, Session] = {}
        self._goodbye: Goodbye | None = None
        self._notifications: deque[Callable[[], None]] = deque()
        self._is_notifying = False

    def join(self, join: Join, link: SessionStream, peer: Peer | None = None) -> Session:
        """Open a session, or take up the one that the same process had; its welcome is the first thing sent."""
        certificate, identity = peer or (None, None)
        if identity is not None and join.client != identity.name:
            raise Refused(
                "wrong-identity", f"client {join.client!r} may not join: its certificate is that of {identity.name!r}"
            )
        if join.protocol != PROTOCOL:
            raise Refused(
                "protocol", f"the server speaks protocol version {PROTOCOL}, client {join.client!r} {join.protocol}"
            )
        if len(join.instance) > MAX_INSTANCE_CHARACTERS:
            raise Refused("malformed", f"an instance has at most {MAX_INSTANCE_CHARACTERS} characters")
        content = self._service.admit(join.client, join.content)
        with self._lock:
            if self._goodbye:
                raise Refused("over", self._goodbye.reason)
            session = self._by_client.get(join.client)
            if session is None or session.instance != join.instance:
                if session is not None and session.link is not None:
                    raise Refused("name-taken", f"a client named {join.client!r} is connected already")
                session = self._register(session, Session(join.client, join.instance))
            if session.link is not None:
                session.link.end(SUPERSEDED)
            session.link, session.certificate = link, certificate
            link.send(Welcome(session.secret, content))
            self._notifications.append(partial(self._service.client_connected, join.client, link))
        self.notify_service()
        return session

    def leave(self, session: Session, link: SessionStream) -> None:
        """The stream behind `link` has ended. Nothing happens if the session has another one by now.

        Returns at once: the caller has the service told (`notify_service`), on a thread that may take its time.
        """
        with self._lock:
            if session.link is not link:
                return
            session.link = None
            self._notifications.append(partial(self._service.client_disconnected, session.client))

    def session(self, secret: str, identity: Identity | None = None) -> Session:
        """Return the session that a secret belongs to, or raise `Refused`, also where another client made it."""
        with self._lock:
            session = self._by_secret.get(secret)
        if session is None or (identity is not None and identity.name != session.client):
            raise Refused("unknown-session", "the server does not know this session: join again")
        return session

    def begin_download(self, request: DownloadRequest, identity: Identity | None = None) -> Outbox:
        """Return the payload that a client asks for."""
        return self._service.begin_download(self.session(request.session, identity).client, request.assignment_id)

    def begin_upload(self, request: UploadRequest, identity: Identity | None = None) -> IncomingUpload:
        """Begin, or go on with, an upload."""
        return self._service.begin_upload(
            self.session(request.session, identity).client, request.assignment_id, request.content, request.layout
        )

    def report(self, failure: Failure, identity: Identity | None = None) -> Receipt:
        """Take note that a client could not do its order."""
        client = self.session(failure.session, identity).client
        self._service.task_failed(client, failure.assignment_id, failure.message)
        return Receipt(failure.assignment_id)

    def end_refused_sessions(self, tls: ServerTls) -> dict[str, Refused]:
        """End the sessions whose certificates are refused by now. Returns the reason by client."""
        with self._lock:
            sessions = list(self._by_client.values())
        refused: dict[str, Refused] = {}
        for session in sessions:
            try:
                if session.certificate is not None:
                    tls.identify(session.certificate)
            except Refused as error:
                refused[session.client] = error
                self._end_session(session, error)
        return refused

    def _end_session(self, session: Session, error: Refused) -> None:
        """End a session: its stream, and its secret."""
        with self._lock:
            if self._by_client.get(session.client) is session:
                del self._by_client[session.client], self._by_secret[session.secret]
            if session.link is not None:
                session.link.end(error)
                # Not in `leave`, which comes later: the client may have joined anew by then, with a new certificate.
                session.link = None
                self._notifications.append(partial(self._service.client_disconnected, session.client))

    def close(self, reason: str, *, failed: bool = False) -> None:
        """Say goodbye to every client, and let nobody in any more."""
        with self._lock:
            self._goodbye = Goodbye(_truncate(reason), failed)
            for session in self._by_client.values():
                if session.link is not None:
                    session.link.send(self._goodbye)

    def notify_service(self) -> None:
        """Tell the service who came and went: in order, and without the lock, so one thread does it for all."""
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

    def _register(self, old: Session | None, new: Session) -> Session:
        if old is not None:
            del self._by_secret[old.secret]
        self._by_client[new.client] = self._by_secret[new.secret] = new
        return new


def refusal_for(error: TransportError) -> Refusal:
    """Return what is said to a client whose call raised `error`."""
    kind = error.kind if isinstance(error, Refused) else "bad-piece"
    return Refusal(kind, _truncate(str(error)))


def _truncate(reason: str) -> str:
    """Return as much of a reason as fits into a call's metadata."""
    return reason.encode("utf-8", "replace")[:MAX_REASON_BYTES].decode("utf-8", "ignore")
