"""The gRPC client: one client's calls to its server.

`session` and `ask` fail at once if the server cannot be reached, with the reason; the other calls wait for it. gRPC's
errors are mapped here and nowhere else: a refusal becomes `Refused`, a lost connection `ConnectionLost`. After
`ConnectionLost` the same call may be retried; an upload then resumes at the first missing piece.
"""

import itertools
import random
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import grpc
from flcore_layout import Layout

from flcore_transport.connection_probe import reached_server_error, unreachable_reason
from flcore_transport.control import decode_from_server, decode_message, decode_reply, encode_message
from flcore_transport.errors import ConnectionLost, CorruptMessage, Refused, TransportError, Unreachable
from flcore_transport.flow_control import WINDOW_PIECES
from flcore_transport.grpc_channel import (
    CLIENT_METADATA,
    JOB_METADATA,
    OPTIONS,
    REFUSAL_METADATA,
    SERVICE,
    SESSION_METADATA,
    TOO_MANY_JOINS,
    require_loopback,
    split_address,
)
from flcore_transport.grpc_heartbeat import SessionWatch
from flcore_transport.grpc_tls import channel_credentials
from flcore_transport.identity import TlsKeys
from flcore_transport.messages import (
    Ask,
    Credit,
    DownloadRequest,
    Failure,
    FromServer,
    Goodbye,
    Heartbeat,
    Join,
    Receipt,
    Refusal,
    Reply,
    UploadRequest,
    require_ask_size,
)
from flcore_transport.pieces import PIECE_BODY_BYTES, Outbox

CHANNEL_OPTIONS = [
    *OPTIONS,
    # A cut connection loses the pieces that the client has not read. gRPC can grant one message beyond this HTTP/2
    # window, so a download has at most `WINDOW_PIECES` on the wire, as an upload has by its credit.
    ("grpc.http2.lookahead_bytes", (WINDOW_PIECES - 1) * PIECE_BODY_BYTES),
    ("grpc.enable_http_proxy", 0),
    ("grpc.dns_ares_query_timeout", 3_000),
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.min_reconnect_backoff_ms", 2_000),  # also the timeout of one attempt to connect
    ("grpc.max_reconnect_backoff_ms", 1_000),
]

REJOIN_AFTER_S = 0.1
"""Seconds until a client joins again after `TOO_MANY_JOINS`; a random factor of 1 to 2 spreads the clients."""

SHARED_CHANNEL_ELEMENTS = 32 << 10
"""Payloads of up to this many elements, at most 256 KiB, use the session's socket."""

_DISCONNECTED = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED, grpc.StatusCode.INTERNAL)
"""gRPC reports bytes that are not HTTP/2, such as those corrupted by the network, as `INTERNAL`."""


class GrpcConnection:
    """One client's connection to a server.

    Args:
        address: The server's address, `"host:port"`.
        keys: The client's keys. Default: None, plaintext.
        allow_remote: Whether plaintext may go to another machine.
        job: The id of the job that all calls are for, on a server that hosts several. Default: its first service.
    """

    def __init__(self, address: str, *, keys: TlsKeys | None = None, allow_remote: bool = False, job: str = "") -> None:
        host, _ = split_address(address)
        if keys is None and not allow_remote:
            require_loopback(host)
        self.address = address
        self._keys, self._job = keys, job
        self._credentials = None if keys is None else channel_credentials(keys)
        self._lock = threading.Lock()
        self._calls: set[Any] = set()
        self._transfers: set[Any] = set()
        self._closed = threading.Event()
        self._has_joined = self._has_reply = False  # since when the server is known to be one of flcore
        self._control = self._channel()

    def session(self, join: Join) -> Iterator[FromServer]:
        """Join, and yield the server's messages up to its goodbye.

        `ConnectionLost` says why no session opens, and `WrongServer` why none will.
        """
        has_begun, metadata = False, self._metadata((CLIENT_METADATA, join.client))
        while True:
            channel = self._control
            call: grpc.UnaryStreamMultiCallable[bytes, bytes] = channel.unary_stream(f"/{SERVICE}/Session")
            try:
                start = partial(call, encode_message(join), metadata=metadata)
                with self._open_call(channel, start, is_transfer=False) as messages:
                    for message in _watched(messages):
                        has_begun = self._has_joined = True
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
                if has_begun or self._closed.is_set() or isinstance(error, CorruptMessage):
                    raise
                raise self._no_answer() from error

    def download(self, request: DownloadRequest, layout: Layout | None = None) -> Iterator[bytes]:
        """Yield the pieces of an assignment's payload from `request.first_piece` on. `layout` is the payload's."""
        channel = self._channel_for(layout)
        call: grpc.UnaryStreamMultiCallable[bytes, bytes] = channel.unary_stream(f"/{SERVICE}/Download")
        data, metadata = encode_message(request), self._metadata((SESSION_METADATA, request.session_secret))
        with self._open_call(channel, lambda: call(data, wait_for_ready=True, metadata=metadata)) as pieces:
            yield from pieces

    def upload(self, request: UploadRequest, outbox: Outbox) -> Receipt:
        """Send an answer within the server's credits, and return its receipt.

        An exception of the outbox ends the upload and is raised here.
        """
        channel = self._channel_for(request.layout)
        call: grpc.StreamStreamMultiCallable[bytes, bytes] = channel.stream_stream(f"/{SERVICE}/Upload")
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
            metadata = self._metadata((SESSION_METADATA, request.session_secret))
            with self._open_call(channel, lambda: call(requests(), wait_for_ready=True, metadata=metadata)) as replies:
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
        data, metadata = encode_message(failure), self._metadata((SESSION_METADATA, failure.session_secret))
        channel = self._control
        call: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(f"/{SERVICE}/Report")
        with self._open_call(channel, lambda: call.future(data, wait_for_ready=True, metadata=metadata)) as reply:
            return decode_message(Receipt, reply.result())

    def ask(self, ask: Ask, timeout_s: float | None = None) -> Reply:
        """Send a request that needs no session, and return its reply.

        Args:
            ask: The request.
            timeout_s: Seconds until a call without a reply is given up. Default: None, the server's own limit holds.

        Raises:
            Refused: The server refuses the request, or the request is too large.
            ConnectionLost: No reply came, and why. The server may have done what was asked.
            WrongServer: The server is not the expected one.
        """
        require_ask_size(ask)
        channel, data = self._control, encode_message(ask)
        call: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(f"/{SERVICE}/Ask")
        start = partial(call.future, data, timeout=timeout_s, metadata=self._metadata())
        try:
            with self._open_call(channel, start, is_transfer=False) as reply:
                received = decode_message(Reply, reply.result())
        except ConnectionLost as error:
            if self._closed.is_set() or isinstance(error, CorruptMessage | _NoReply):
                raise
            raise self._no_answer() from error
        self._has_reply = True
        return received

    def _metadata(self, *fields: tuple[str, str]) -> tuple[tuple[str, bytes], ...]:
        """Return a call's metadata: the fields, and the job if there is one."""
        job = ((JOB_METADATA, self._job),) if self._job else ()
        return tuple((key, value.encode()) for key, value in (*fields, *job))

    def running_transfers(self) -> list[Callable[[], object]]:
        """Return a function for each upload and download that runs now, which ends it with `ConnectionLost`.

        May be called from any thread, as may the functions.
        """
        with self._lock:
            return [call.cancel for call in self._transfers]

    def close(self) -> None:
        """End every call of this connection. May be called from any thread, and twice.

        Channels are freed with their last reference: `Channel.close` can block for ever on an interrupted call.
        """
        with self._lock:
            self._closed.set()
            calls = list(self._calls)
        for call in calls:
            call.cancel()

    def _no_answer(self) -> TransportError:
        """Return why no call opens, without gRPC's text: it differs at each attempt, and callers compare reasons."""
        if reason := unreachable_reason(self.address):
            return Unreachable(f"{self.address} cannot be reached: {reason}")
        if self._has_reply:
            return ConnectionLost(f"{self.address} ended the call without a reply")
        error = reached_server_error(self.address, self._keys)
        # A client that has been in is not sent away by a certificate that expires: its operator renews it.
        return ConnectionLost(str(error)) if self._has_joined else error

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
    def _open_call(self, channel: grpc.Channel, start: Callable[[], Any], *, is_transfer: bool = True) -> Iterator[Any]:
        """A call that `close` can end, listed among the transfers if it is one. Its errors become `TransportError`s."""
        with self._lock:
            if self._closed.is_set():
                raise ConnectionLost(f"the connection to {self.address} is closed")
            call = start()
            self._calls.add(call)
            if is_transfer:
                self._transfers.add(call)
        try:
            yield call
        except (grpc.RpcError, grpc.FutureCancelledError) as error:
            mapped = self._to_transport_error(call)
            if isinstance(mapped, ConnectionLost):
                self._replace_control(channel)
            raise mapped from error
        finally:
            call.cancel()
            with self._lock:
                self._calls.discard(call)
                self._transfers.discard(call)

    def _replace_control(self, lost: grpc.Channel) -> None:
        """Use a new connection for later calls, unless the lost call had one of its own.

        A bit flipped in a header may stay in the connection's table of HPACK, and would break each call on it. Calls
        that go on keep their channel.
        """
        with self._lock:
            if self._control is lost:
                self._control = self._channel()

    def _to_transport_error(self, call: Any) -> Exception:
        for key, value in call.trailing_metadata() or ():
            if key == REFUSAL_METADATA:
                try:
                    refused = decode_message(Refusal, value)
                except CorruptMessage as error:
                    return error
                if refused.kind == CorruptMessage.kind:
                    return CorruptMessage(refused.message)
                return Refused(refused.kind, refused.message)
        if call.code() is grpc.StatusCode.RESOURCE_EXHAUSTED and call.details() == TOO_MANY_JOINS:
            return _TooManyJoins()
        if call.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
            return _NoReply(f"{self.address} has not replied in time")
        # A server that has welcomed this client knows its calls. A status that it never sends comes, in plaintext, from
        # a flipped bit in HTTP/2's headers.
        is_garbled = self._has_joined and call.code() is not grpc.StatusCode.RESOURCE_EXHAUSTED
        if call.code() in _DISCONNECTED or is_garbled:
            return ConnectionLost(f"the connection to {self.address} is gone: {call.details()}")
        if call.code() is grpc.StatusCode.UNIMPLEMENTED:
            return TransportError(f"expected a flcore server at {self.address}, found another gRPC server")
        return TransportError(f"the server at {self.address} answered with {call.code().name}: {call.details()}")


def _watched(call: Any) -> Iterator[FromServer]:
    """Yield the messages of a session's call, without the heartbeats."""
    watch = SessionWatch(call)
    try:
        for data in call:
            message = decode_from_server(data)
            watch.received(message)
            if not isinstance(message, Heartbeat):
                yield message
    finally:
        watch.end()


class _NoReply(ConnectionLost):
    """The call's deadline has passed."""


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
