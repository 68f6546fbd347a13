"""The gRPC client: what one client process says to its server.

Calls wait for a server that is not there yet. Errors of gRPC are mapped once, here: a refusal becomes `Refused`, a lost
connection `ConnectionLost`, after which the same call may be made again; an upload then goes on where it broke off.
"""

import itertools
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import grpc

from flcore_transport.control import decode, decode_from_server, decode_reply, encode
from flcore_transport.errors import ConnectionLost, Refused, TransportError
from flcore_transport.grpc_channel import OPTIONS, REFUSAL_METADATA, SERVICE, require_loopback, split_address
from flcore_transport.messages import Failure, Fetch, FromServer, Grant, Join, Layout, Offer, Receipt, Refusal
from flcore_transport.pieces import Outbox

CHANNEL_OPTIONS = [
    *OPTIONS,
    ("grpc.enable_http_proxy", 0),
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.min_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 2_000),
]

SMALL_ELEMENTS = 32 << 10
"""A payload up to this, of 256 KiB at most, goes through the session's socket."""

_LOST = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)


class GrpcConnection:
    """One client's connection to the server at `address` (`"host:port"`); `credentials=None` is plaintext."""

    def __init__(
        self, address: str, *, credentials: grpc.ChannelCredentials | None = None, allow_remote: bool = False
    ) -> None:
        host, _ = split_address(address)
        if credentials is None and not allow_remote:
            require_loopback(host)
        self.address = address
        self._credentials = credentials
        self._lock = threading.Lock()
        self._calls: set[Any] = set()
        self._is_closed = False
        self._control = self._channel()
        self._session_call: grpc.UnaryStreamMultiCallable[bytes, bytes] = self._control.unary_stream(
            f"/{SERVICE}/Session"
        )
        self._report_call: grpc.UnaryUnaryMultiCallable[bytes, bytes] = self._control.unary_unary(f"/{SERVICE}/Report")

    def session(self, join: Join) -> Iterator[FromServer]:
        """Join, and yield what the server says until its goodbye; waits for a server that is not there yet."""
        with self._calling(lambda: self._session_call(encode(join), wait_for_ready=True)) as messages:
            for message in messages:
                yield decode_from_server(message)

    def download(self, fetch: Fetch, layout: Layout | None = None) -> Iterator[bytes]:
        """Yield the pieces of an order's payload, which has `layout`, from `fetch.first_piece` on."""
        call: grpc.UnaryStreamMultiCallable[bytes, bytes] = self._channel_for(layout).unary_stream(
            f"/{SERVICE}/Download"
        )
        with self._calling(lambda: call(encode(fetch), wait_for_ready=True)) as pieces:
            yield from pieces

    def upload(self, offer: Offer, outbox: Outbox) -> Receipt:
        """Send an answer, never more pieces than the server has granted, and return its receipt.

        What the outbox raises when it is asked for a piece ends the upload, and is raised here.
        """
        call: grpc.StreamStreamMultiCallable[bytes, bytes] = self._channel_for(offer.layout).stream_stream(
            f"/{SERVICE}/Upload"
        )
        credit, failures = _Credit(), list[Exception]()

        def requests() -> Iterator[bytes]:
            yield encode(offer)
            for index in credit.granted():
                try:
                    piece = outbox.piece(index)
                except Exception as error:  # noqa: BLE001 - it is raised where the upload was called
                    failures.append(error)
                    return
                yield piece

        try:
            with self._calling(lambda: call(requests(), wait_for_ready=True)) as replies:
                for data in replies:
                    reply = decode_reply(data)
                    if isinstance(reply, Receipt):
                        return reply
                    credit.extend(reply, len(outbox.plan))
        except TransportError:
            if not failures:
                raise
        finally:
            credit.close()
        if failures:
            raise failures[0]
        raise ConnectionLost(f"the server at {self.address} ended the upload without a receipt")

    def report(self, failure: Failure) -> Receipt:
        """Tell the server that an order could not be done."""
        with self._calling(lambda: self._report_call.future(encode(failure), wait_for_ready=True)) as reply:
            return decode(Receipt, reply.result())

    def close(self) -> None:
        """End every call of this connection. May be called from any thread, and twice.

        A channel goes when nothing refers to it: `Channel.close` can wait for ever for a call that was interrupted.
        """
        with self._lock:
            self._is_closed = True
            calls = list(self._calls)
        for call in calls:
            call.cancel()

    def _channel_for(self, layout: Layout | None) -> grpc.Channel:
        """Return the channel that a payload goes through.

        gRPC keeps buffers of a piece's size for each socket that one went through; so each transfer has one that goes
        with it, unless it is small, and an idle client costs next to nothing at either end.
        """
        if layout is None:
            return self._channel()
        elements = sum(segment.elements for part in layout.parts for segment in part.segments)
        return self._control if elements <= SMALL_ELEMENTS else self._channel()

    def _channel(self) -> grpc.Channel:
        """Return a new channel, with a socket of its own."""
        options = [*CHANNEL_OPTIONS, ("grpc.use_local_subchannel_pool", 1)]
        if self._credentials is None:
            return grpc.insecure_channel(self.address, options=options)
        return grpc.secure_channel(self.address, self._credentials, options=options)

    @contextmanager
    def _calling(self, start: Callable[[], Any]) -> Iterator[Any]:
        """A call that `close` can end; gRPC's errors become ours."""
        with self._lock:
            if self._is_closed:
                raise ConnectionLost(f"the connection to {self.address} is closed")
            call = start()
            self._calls.add(call)
        try:
            yield call
        except (grpc.RpcError, grpc.FutureCancelledError) as error:
            raise _mapped_error(call, self.address) from error
        finally:
            call.cancel()
            with self._lock:
                self._calls.discard(call)


class _Credit:
    """How many pieces may be sent: extended by the replies' thread, waited for by the requests' thread."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._first: int | None = None
        self._allowed = 0
        self._is_closed = False

    def extend(self, grant: Grant, total: int) -> None:
        with self._changed:
            if self._first is None:
                self._first = grant.received
            self._allowed = min(grant.allowed, total)
            self._changed.notify()

    def granted(self) -> Iterator[int]:
        """Yield the index of each piece to send, as soon as it may be sent; the first grant says where to begin."""
        with self._changed:
            self._changed.wait_for(lambda: self._is_closed or self._first is not None)
        for index in itertools.count(self._first or 0):
            with self._changed:
                while not self._is_closed and index >= self._allowed:
                    self._changed.wait()
                if self._is_closed:
                    return
            yield index

    def close(self) -> None:
        with self._changed:
            self._is_closed = True
            self._changed.notify()


def _mapped_error(call: Any, address: str) -> TransportError:
    for key, value in call.trailing_metadata() or ():
        if key == REFUSAL_METADATA:
            refused = decode(Refusal, value)
            return Refused(refused.kind, refused.message)
    if call.code() in _LOST:
        return ConnectionLost(f"the connection to {address} is gone: {call.details()}")
    return TransportError(f"the server at {address} answered with {call.code().name}: {call.details()}")
