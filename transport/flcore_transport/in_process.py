"""The in-process twin: the same service behind the same calls, with queues and function calls instead of sockets.

It passes the same tests as gRPC, and lets one process host hundreds of simulated clients. The pieces are real: they are
encoded, hashed and checked as on the wire.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from queue import SimpleQueue

from flcore_transport.endpoint import Endpoint, Service, refusal
from flcore_transport.errors import ConnectionLost, Refused, TransportError
from flcore_transport.messages import Failure, Fetch, FromServer, Goodbye, Join, Layout, Offer, Receipt
from flcore_transport.pieces import Outbox

_CLOSED = Goodbye("the connection was closed here")


class InProcessServer:
    """Serves a `Service` to the connections of this process until closed."""

    address = "in-process"

    def __init__(self, service: Service) -> None:
        self.endpoint = Endpoint(service)

    def close(self, reason: str = "the server has stopped", *, failed: bool = False) -> None:
        """Say goodbye to all clients. May be called twice."""
        self.endpoint.close(reason, failed=failed)


class _Stream:
    """One client's session stream: the `Link` that the service has to it."""

    def __init__(self) -> None:
        self.inbound: SimpleQueue[FromServer] = SimpleQueue()
        self.was_cut: set[int] = set()

    def send(self, message: FromServer) -> None:
        """Put a message on the stream."""
        self.inbound.put(message)

    def cut(self, order: int) -> None:
        """End the client's transfers of an order."""
        self.was_cut.add(order)


class InProcessConnection:
    """One client's connection to an `InProcessServer`."""

    def __init__(self, server: InProcessServer) -> None:
        self.address = server.address
        self._endpoint = server.endpoint
        self._lock = threading.Lock()
        self._inbound: SimpleQueue[FromServer] | None = None
        self._is_closed = False

    def session(self, join: Join) -> Iterator[FromServer]:
        """Join, and yield what the server says until its goodbye."""
        stream = _Stream()
        with self._lock:
            self._inbound = stream.inbound
        with self._calling():
            session = self._endpoint.join(join, stream)
        try:
            while (message := stream.inbound.get()) is not _CLOSED:
                yield message
                if isinstance(message, Goodbye):
                    return
        finally:
            self._endpoint.leave(session, stream)
        raise ConnectionLost("the connection is closed")

    def download(self, fetch: Fetch, layout: Layout | None = None) -> Iterator[bytes]:  # noqa: ARG002 - as over gRPC
        """Yield the pieces of an order's payload from `fetch.first_piece` on."""
        with self._calling():
            outbox = self._endpoint.fetch(fetch)
        for index in range(fetch.first_piece, len(outbox.plan)):
            with self._calling():
                piece = outbox.piece(index)
            yield piece

    def upload(self, offer: Offer, outbox: Outbox) -> Receipt:
        """Send an answer and return its receipt."""
        with self._calling():
            delivery = self._endpoint.offer(offer)
        try:
            with self._calling():
                delivery.begin().result()
            while delivery.received < delivery.expected:
                with self._calling():
                    delivery.accept(outbox.piece(delivery.received))
            with self._calling():
                return delivery.commit()
        finally:
            delivery.end()

    def report(self, failure: Failure) -> Receipt:
        """Tell the server that an order could not be done."""
        with self._calling():
            return self._endpoint.report(failure)

    def close(self) -> None:
        """End every call of this connection. May be called from any thread, and twice."""
        self._is_closed = True
        with self._lock:
            if self._inbound is not None:
                self._inbound.put(_CLOSED)

    @contextmanager
    def _calling(self) -> Iterator[None]:
        """One call: refused by a closed connection, and what the server refuses arrives as it would over a wire."""
        if self._is_closed:
            raise ConnectionLost("the connection is closed")
        try:
            yield
        except TransportError as error:
            refused = refusal(error)
            raise Refused(refused.kind, refused.message) from error
