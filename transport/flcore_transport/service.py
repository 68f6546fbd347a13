"""What a transport and the logic above it ask of each other: `Service`, uploads, and the links to clients."""

from concurrent.futures import Future
from typing import Protocol

from flcore_layout import Layout

from flcore_transport.errors import TransportError
from flcore_transport.messages import FromServer, Receipt
from flcore_transport.pieces import Outbox


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

    def authorize(self, client: str) -> None:
        """Raise `Refused` unless a client of this name may join. Called before its join is read, so returns at once."""
        ...

    def admit(self, client: str, content: bytes) -> bytes:
        """Admit an authorized client and return the content of its welcome, or raise `Refused`."""
        ...

    def join_refused(self, client: str, reason: str) -> None:
        """Called when a join was refused before `admit`: for its name, its certificate, or a malformed message."""
        ...

    def call_refused(self, client: str, fingerprint: str, kind: str, reason: str) -> None:
        """Called when a call was refused for its certificate or its session's secret.

        `client` is empty if the certificate names none, and `fingerprint` over plaintext.
        """
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

    # `token` is what the client's call carries as the token of its assignment. The service verifies it.

    def begin_download(self, client: str, assignment_id: int, token: bytes) -> Outbox:
        """Return the payload of a client's assignment."""
        ...

    def begin_upload(
        self, client: str, assignment_id: int, token: bytes, content: bytes, layout: Layout
    ) -> IncomingUpload:
        """Begin or resume the upload of a client's answer."""
        ...

    def task_failed(self, client: str, assignment_id: int, token: bytes, message: str) -> None:
        """Called when the client has reported a failure."""
        ...
