"""The gRPC client: one client's calls to its server.

`session` fails at once if the server cannot be reached, with the reason; the other calls wait for the server. gRPC's
errors are mapped here and nowhere else: a refusal becomes `Refused`, a lost connection `ConnectionLost`. After
`ConnectionLost` the same call may be retried; an upload then resumes at the first missing piece.
"""

import itertools
import random
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import grpc
from flcore_layout import Layout

from flcore_transport.control import decode_from_server, decode_message, decode_reply, encode_message
from flcore_transport.errors import ConnectionLost, Refused, TransportError
from flcore_transport.grpc_channel import (
    OPTIONS,
    REFUSAL_METADATA,
    SERVICE,
    SESSION_METADATA,
    TOO_MANY_JOINS,
    require_loopback,
    split_address,
)
from flcore_transport.grpc_tls import channel_credentials
from flcore_transport.identity import TlsKeys
from flcore_transport.messages import (
    Credit,
    DownloadRequest,
    Failure,
    FromServer,
    Goodbye,
    Join,
    Receipt,
    Refusal,
    UploadRequest,
)
from flcore_transport.pieces import Outbox
from flcore_transport.tls_probe import tls_failure_reason

CHANNEL_OPTIONS = [
    *OPTIONS,
    ("grpc.enable_http_proxy", 0),
    ("grpc.dns_ares_query_timeout", 3_000),
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.min_reconnect_backoff_ms", 2_000),  # also the timeout of one attempt to connect
    ("grpc.max_reconnect_backoff_ms", 1_000),
]

REJOIN_AFTER_S = 0.1
"""Seconds until a client joins again after `TOO_MANY_JOINS`; a random factor of 1 to 2 spreads the clients."""

PROBE_TIMEOUT_S = 3.0
"""Seconds for the probe that finds out why the server cannot be reached."""

SHARED_CHANNEL_ELEMENTS = 32 << 10
"""Payloads of up to this many elements, at most 256 KiB, use the session's socket."""

_DISCONNECTED = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED, grpc.StatusCode.INTERNAL)
"""gRPC reports bytes that are not HTTP/2, such as those corrupted by the network, as `INTERNAL`."""


class GrpcConnection:
    """One client's connection to the server at `address` (`"host:port"`).

    `keys=None` is plaintext, which goes to this machine only unless `allow_remote` is True.
    """

    def __init__(self, address: str, *, keys: TlsKeys | None = None, allow_remote: bool = False) -> None:
        host, _ = split_address(address)
        if keys is None and not allow_remote:
            require_loopback(host)
        self.address = address
        self._keys = keys
        self._credentials = None if keys is None else channel_credentials(keys)
        self._lock = threading.Lock()
        self._calls: set[Any] = set()
        self._closed = threading.Event()
        self._control = self._channel()
        self._session_call: grpc.UnaryStreamMultiCallable[bytes, bytes] = self._control.unary_stream(
            f"/{SERVICE}/Session"
        )
        self._report_call: grpc.UnaryUnaryMultiCallable[bytes, bytes] = self._control.unary_unary(f"/{SERVICE}/Report")

    def session(self, join: Join) -> Iterator[FromServer]:
        """Join, and yield the server's messages up to its goodbye. `ConnectionLost` says why no session opens."""
        has_begun = False
        while True:
            try:
                with self._open_call(lambda: self._session_call(encode_message(join))) as messages:
                    for data in messages:
                        has_begun = True
                        message = decode_from_server(data)
                        if isinstance(message, Goodbye):
                            break
                        yield message
                    else:
                        return
                # Leaving the call hangs up. A closing server waits for that, so hang up before the caller goes on.
                yield message
                return
            except _TooManyJoins:
                self._closed.wait(REJOIN_AFTER_S * (1 + random.random()))  # noqa: S311 - not for security
            except ConnectionLost as error:
                if has_begun or self._closed.is_set():
                    raise
                raise ConnectionLost(self._unreachable_reason()) from error

    def download(self, request: DownloadRequest, layout: Layout | None = None) -> Iterator[bytes]:
        """Yield the pieces of an assignment's payload from `request.first_piece` on. `layout` is the payload's."""
        call: grpc.UnaryStreamMultiCallable[bytes, bytes] = self._channel_for(layout).unary_stream(
            f"/{SERVICE}/Download"
        )
        with self._open_call(
            lambda: call(
                encode_message(request), wait_for_ready=True, metadata=_session_metadata(request.session_secret)
            )
        ) as pieces:
            yield from pieces

    def upload(self, request: UploadRequest, outbox: Outbox) -> Receipt:
        """Send an answer within the server's credits, and return its receipt.

        An exception of the outbox ends the upload and is raised here.
        """
        call: grpc.StreamStreamMultiCallable[bytes, bytes] = self._channel_for(request.layout).stream_stream(
            f"/{SERVICE}/Upload"
        )
        send_credit, failures = _SendCredit(), list[Exception]()

        # gRPC iterates over this on a thread of its own, which blocks while there is no credit. An exception would
        # reach the caller as a gRPC error without its type, so it is passed on in `failures`.
        def requests() -> Iterator[bytes]:
            yield encode_message(request)
            for index in send_credit.sendable_pieces():
                try:
                    piece = outbox.piece(index)
                except Exception as error:  # noqa: BLE001 - it is raised where the upload was called
                    failures.append(error)
                    return
                yield piece

        try:
            metadata = _session_metadata(request.session_secret)
            with self._open_call(lambda: call(requests(), wait_for_ready=True, metadata=metadata)) as replies:
                for data in replies:
                    reply = decode_reply(data)
                    if isinstance(reply, Receipt):
                        return reply
                    send_credit.extend(reply, len(outbox.piece_ranges))
        except TransportError:
            if not failures:
                raise
        finally:
            send_credit.close()
        if failures:
            raise failures[0]
        raise ConnectionLost(f"the server at {self.address} ended the upload without a receipt")

    def report(self, failure: Failure) -> Receipt:
        """Tell the server that an assignment could not be done."""
        data, metadata = encode_message(failure), _session_metadata(failure.session_secret)
        with self._open_call(lambda: self._report_call.future(data, wait_for_ready=True, metadata=metadata)) as reply:
            return decode_message(Receipt, reply.result())

    def close(self) -> None:
        """End every call of this connection. May be called from any thread, and twice.

        Channels are freed with their last reference: `Channel.close` can block for ever on an interrupted call.
        """
        with self._lock:
            self._closed.set()
            calls = list(self._calls)
        for call in calls:
            call.cancel()

    def _unreachable_reason(self) -> str:
        """Return why no session opens, without gRPC's text: it differs at each attempt, and callers compare reasons."""
        if reason := unreachable_reason(self.address):
            return f"{self.address} cannot be reached: {reason}"
        if self._keys is None:
            return f"{self.address} can be reached, but no flcore server answers there"
        if reason := tls_failure_reason(*split_address(self.address), self._keys.root_certificates, PROBE_TIMEOUT_S):
            return f"{self.address} can be reached, but {reason}"
        return (
            f"{self.address} can be reached, but it refused this client's certificate, or no flcore server answers "
            "there: is the certificate of its CA, and has it expired?"
        )

    def _channel_for(self, layout: Layout | None) -> grpc.Channel:
        """Return the channel for a payload's transfer: a new one, or the session's for a small payload.

        gRPC keeps buffers of a piece's size for each socket that carried one. With a socket per transfer they are freed
        with it, so an idle client holds almost no memory at either end.
        """
        if layout is None:
            return self._channel()
        elements = sum(segment.elements for part in layout.parts for segment in part.segments)
        return self._control if elements <= SHARED_CHANNEL_ELEMENTS else self._channel()

    def _channel(self) -> grpc.Channel:
        """Return a new channel with its own socket."""
        options = [*CHANNEL_OPTIONS, ("grpc.use_local_subchannel_pool", 1)]
        if self._credentials is None:
            return grpc.insecure_channel(self.address, options=options)
        return grpc.secure_channel(self.address, self._credentials, options=options)

    @contextmanager
    def _open_call(self, start: Callable[[], Any]) -> Iterator[Any]:
        """A call that `close` can end and whose gRPC errors are mapped to `TransportError`s."""
        with self._lock:
            if self._closed.is_set():
                raise ConnectionLost(f"the connection to {self.address} is closed")
            call = start()
            self._calls.add(call)
        try:
            yield call
        except (grpc.RpcError, grpc.FutureCancelledError) as error:
            raise self._to_transport_error(call) from error
        finally:
            call.cancel()
            with self._lock:
                self._calls.discard(call)

    def _to_transport_error(self, call: Any) -> Exception:
        for key, value in call.trailing_metadata() or ():
            if key == REFUSAL_METADATA:
                refused = decode_message(Refusal, value)
                return Refused(refused.kind, refused.message)
        if call.code() is grpc.StatusCode.RESOURCE_EXHAUSTED and call.details() == TOO_MANY_JOINS:
            return _TooManyJoins()
        if call.code() in _DISCONNECTED:
            return ConnectionLost(f"the connection to {self.address} is gone: {call.details()}")
        if call.code() is grpc.StatusCode.UNIMPLEMENTED:
            return TransportError(f"expected a flcore server at {self.address}, found another gRPC server")
        return TransportError(f"the server at {self.address} answered with {call.code().name}: {call.details()}")


class _TooManyJoins(Exception):
    """The server reads no more joins at the moment."""


class _SendCredit:
    """The credit of one upload: extended by the thread that reads replies, awaited by gRPC's sending thread."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._first: int | None = None
        self._allowed = 0
        self._is_closed = False

    def extend(self, credit: Credit, total: int) -> None:
        with self._changed:
            if self._first is None:
                self._first = credit.received
            self._allowed = min(credit.allowed, total)
            self._changed.notify()

    def sendable_pieces(self) -> Iterator[int]:
        """Yield the index of each piece to send, as soon as credit allows. The first credit tells where to begin."""
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


def _session_metadata(session_secret: str) -> tuple[tuple[str, bytes]]:
    return ((SESSION_METADATA, session_secret.encode()),)


def unreachable_reason(address: str) -> str:
    """Return why `address` (`"host:port"`) cannot be reached, or "" if it can. Waits `PROBE_TIMEOUT_S` at most."""
    host, port = split_address(address)
    reasons = [f"no answer within {PROBE_TIMEOUT_S:g} s"]

    def probe() -> None:
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            _, _, _, _, (name, number, *_) = found[0]
            socket.create_connection((str(name), int(number)), timeout=PROBE_TIMEOUT_S).close()
            reasons[0] = ""
        except (socket.gaierror, UnicodeError) as error:
            reasons[0] = f"the name {host!r} is not known ({getattr(error, 'strerror', error)})"
        except OSError as error:
            reasons[0] = f"{error.strerror or error}".lower()

    probing = threading.Thread(target=probe, daemon=True)
    probing.start()
    probing.join(PROBE_TIMEOUT_S)
    return reasons[0]
