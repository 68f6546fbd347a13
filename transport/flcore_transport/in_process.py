"""The in-process twin: the same service behind the same calls, with queues and function calls instead of sockets.

It passes the same tests as gRPC, and lets one process host hundreds of simulated clients. The pieces are real: they are
encoded, hashed and checked as on the wire, and moved in turn, as `windows` says.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from queue import SimpleQueue

from flcore_transport.endpoint import Endpoint, Service, refusal
from flcore_transport.errors import ConnectionLost, Refused, TransportError
from flcore_transport.in_process_turns import Mover, Turns
from flcore_transport.messages import Failure, Fetch, FromServer, Goodbye, Join, Layout, Offer, Receipt
from flcore_transport.pieces import PIECE_BODY_BYTES, Outbox
from flcore_transport.windows import DEFAULT_WINDOWS_BYTES, Ending, Windows


class InProcessServer:
    """Serves a `Service` to the connections of this process until closed.

    All transfers together have up to `windows_bytes` of pieces under way.
    """

    address = "in-process"

    def __init__(self, service: Service, *, windows_bytes: int = DEFAULT_WINDOWS_BYTES) -> None:
        self.endpoint = Endpoint(service)
        self.turns = Turns(Windows(windows_bytes // PIECE_BODY_BYTES))

    def close(self, reason: str = "the server has stopped", *, failed: bool = False) -> None:
        """Say goodbye to all clients. May be called twice."""
        self.endpoint.close(reason, failed=failed)


class InProcessConnection:
    """One client's connection to an `InProcessServer`."""

    def __init__(self, server: InProcessServer) -> None:
        self.address = server.address
        self._endpoint, self._turns = server.endpoint, server.turns
        self._lock = threading.Lock()
        self._stream: _Stream | None = None
        self._movers: set[Mover] = set()
        self._is_closed = False

    def session(self, join: Join) -> Iterator[FromServer]:
        """Join, and yield what the server says until its goodbye."""
        stream = _Stream(join.client, self._turns)
        with self._lock:
            self._stream = stream
        with self._calling():
            session = self._endpoint.join(join, stream)
        try:
            while not isinstance(message := stream.inbound.get(), TransportError):
                yield message
                if isinstance(message, Goodbye):
                    return
        finally:
            self._endpoint.leave(session, stream)
            self._endpoint.tell()
        raise message

    def upload(self, offer: Offer, outbox: Outbox) -> Receipt:
        """Send an answer and return its receipt."""
        with self._moving("upload", offer.session, offer.order) as mover:
            with self._calling():
                delivery = self._endpoint.offer(offer)
            try:
                if delivery.received < delivery.expected:
                    with self._calling():
                        mover.turn()
                        mover.wait(delivery.begin())
                while delivery.received < delivery.expected:
                    with mover.standing():
                        piece = outbox.piece(delivery.received)
                    with self._calling():
                        mover.go_on()
                        ready = delivery.accept(piece)
                        if ready is not None:
                            mover.wait(ready)
                mover.is_done = True
                with self._calling():
                    return delivery.commit()
            finally:
                delivery.end()

    def download(self, fetch: Fetch, layout: Layout | None = None) -> Iterator[bytes]:  # noqa: ARG002 - as over gRPC
        """Yield the pieces of an order's payload from `fetch.first_piece` on."""
        with self._moving("download", fetch.session, fetch.order) as mover:
            with self._calling():
                outbox = self._endpoint.fetch(fetch)
            for index in range(fetch.first_piece, len(outbox.plan)):
                with self._calling():
                    if not mover.has_turn:
                        outbox.queued()
                    mover.turn()
                    piece = outbox.piece(index)
                with mover.standing():
                    yield piece
            mover.is_done = True

    def report(self, failure: Failure) -> Receipt:
        """Tell the server that an order could not be done."""
        with self._calling():
            return self._endpoint.report(failure)

    def close(self) -> None:
        """End every call of this connection. May be called from any thread, and twice."""
        self._is_closed = True
        with self._lock:
            if self._stream is not None:
                self._stream.end(ConnectionLost("the connection is closed"))
            movers = list(self._movers)
        for mover in movers:
            mover.lose()

    @contextmanager
    def _moving(self, kind: str, session: str, order: int) -> Iterator[Mover]:
        """One call that moves pieces; `close` ends it."""
        with self._calling():
            client = self._endpoint.session(session).client
        with self._turns.transfer(client, kind, order) as mover:
            with self._lock:
                self._movers.add(mover)
            try:
                yield mover
            finally:
                with self._lock:
                    self._movers.discard(mover)

    @contextmanager
    def _calling(self) -> Iterator[None]:
        """A step of the server's: refused by a closed connection; what it refuses arrives as it would over a wire."""
        if self._is_closed:
            raise ConnectionLost("the connection is closed")
        try:
            yield
        except ConnectionLost:
            raise
        except TransportError as error:
            refused = refusal(error)
            raise Refused(refused.kind, refused.message) from error


class _Stream:
    """One client's session stream: the `Link` that the service has to it."""

    def __init__(self, client: str, turns: Turns) -> None:
        self.inbound: SimpleQueue[FromServer | TransportError] = SimpleQueue()
        self._client, self._turns = client, turns

    def send(self, message: FromServer) -> None:
        """Put a message on the stream."""
        self.inbound.put(message)

    def cut(self, order: int) -> None:
        """End the client's transfers of an order."""
        self._turns.cut(self._client, order)

    def give_up(self) -> None:
        """End the stream: its client has a newer one."""
        self.end(Ending.SUPERSEDED.error())

    def end(self, error: TransportError) -> None:
        """End the stream with an error."""
        self.inbound.put(error)
