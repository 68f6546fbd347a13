"""The in-process transport: the same service and calls as over gRPC, with queues and function calls for sockets.

It passes the same tests as gRPC, and lets one process host hundreds of simulated clients. Pieces are encoded
and checked, checksums included, as on the wire, within windows of the same `FlowControl`.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from queue import SimpleQueue

from flcore_layout import Layout

from flcore_transport.endpoint import Endpoint, to_refusal
from flcore_transport.errors import ConnectionLost, Refused, TransportError
from flcore_transport.flow_control import DEFAULT_IN_FLIGHT_BYTES, FlowControl
from flcore_transport.in_process_flow_control import TransferCall, TransferScheduler
from flcore_transport.messages import DownloadRequest, Failure, FromServer, Goodbye, Join, Receipt, UploadRequest
from flcore_transport.pieces import PIECE_BODY_BYTES, Outbox
from flcore_transport.service import Service


class InProcessServer:
    """Serves a `Service` to the connections of this process until closed.

    All transfers together have up to `in_flight_bytes` of pieces in flight.
    """

    address = "in-process"

    def __init__(self, service: Service, *, in_flight_bytes: int = DEFAULT_IN_FLIGHT_BYTES) -> None:
        self.endpoint = Endpoint(service)
        self.scheduler = TransferScheduler(FlowControl(in_flight_bytes // PIECE_BODY_BYTES))

    def close(self, reason: str = "the server has stopped", *, failed: bool = False) -> None:
        """Say goodbye to all clients. May be called twice."""
        self.endpoint.close(reason, failed=failed)

    def leave(self) -> None:
        """Do nothing: clients without a goodbye end with this process."""


class InProcessConnection:
    """One client's connection to an `InProcessServer`."""

    def __init__(self, server: InProcessServer) -> None:
        self.address = server.address
        self._endpoint, self._scheduler = server.endpoint, server.scheduler
        self._lock = threading.Lock()
        self._stream: _SessionStream | None = None
        self._calls: set[TransferCall] = set()
        self._is_closed = False

    def session(self, join: Join) -> Iterator[FromServer]:
        """Join, and yield the server's messages up to its goodbye."""
        stream = _SessionStream(join.client, self._scheduler)
        with self._lock:
            self._stream = stream
        with self._server_step():
            session = self._endpoint.join(join, stream)
        try:
            while not isinstance(message := stream.outgoing.get(), TransportError):
                yield message
                if isinstance(message, Goodbye):
                    return
        finally:
            self._endpoint.leave(session, stream)
            self._endpoint.notify_service()
        raise message

    def upload(self, request: UploadRequest, outbox: Outbox) -> Receipt:
        """Send an answer and return its receipt."""
        with self._transfer_call("upload", request.session_secret, request.assignment_id) as call:
            with self._server_step():
                upload = self._endpoint.begin_upload(request)
            try:
                if upload.received < upload.expected:
                    with self._server_step():
                        call.acquire_window()
                        call.wait_for_server(upload.begin())
                while upload.received < upload.expected:
                    with call.waiting_for_client():
                        piece = outbox.piece(upload.received)
                    with self._server_step():
                        call.raise_if_ended()
                        ready = upload.accept(piece)
                        if ready is not None:
                            call.wait_for_server(ready)
                call.is_done = True
                with self._server_step():
                    return upload.commit()
            finally:
                upload.end()

    def download(self, request: DownloadRequest, layout: Layout | None = None) -> Iterator[bytes]:  # noqa: ARG002 - as over gRPC
        """Yield the pieces of an assignment's payload from `request.first_piece` on."""
        with self._transfer_call("download", request.session_secret, request.assignment_id) as call:
            with self._server_step():
                outbox = self._endpoint.begin_download(request)
            for index in range(request.first_piece, len(outbox.piece_ranges)):
                with self._server_step():
                    if not call.has_window:
                        outbox.on_queued()
                    call.acquire_window()
                    piece = outbox.piece(index)
                with call.waiting_for_client():
                    yield piece
            call.is_done = True

    def report(self, failure: Failure) -> Receipt:
        """Tell the server that an assignment could not be done."""
        with self._server_step():
            return self._endpoint.report(failure)

    def running_transfers(self) -> list[Callable[[], object]]:
        """Return a function for each upload and download that runs now, which ends it with `ConnectionLost`.

        May be called from any thread, as may the functions.
        """
        with self._lock:
            return [call.disconnect for call in self._calls]

    def close(self) -> None:
        """End every call of this connection. May be called from any thread, and twice."""
        self._is_closed = True
        with self._lock:
            if self._stream is not None:
                self._stream.end(ConnectionLost("the connection is closed"))
        for end in self.running_transfers():
            end()

    @contextmanager
    def _transfer_call(self, direction: str, session_secret: str, assignment_id: int) -> Iterator[TransferCall]:
        """One upload or download call; `close` ends it."""
        with self._server_step():
            client = self._endpoint.client_of(session_secret)
        with self._scheduler.transfer(client, direction, assignment_id) as call:
            with self._lock:
                self._calls.add(call)
            try:
                yield call
            finally:
                with self._lock:
                    self._calls.discard(call)

    @contextmanager
    def _server_step(self) -> Iterator[None]:
        """A step on the server's side: fails if the connection is closed, and maps errors to `Refused` as gRPC does."""
        if self._is_closed:
            raise ConnectionLost("the connection is closed")
        try:
            yield
        except ConnectionLost:
            raise
        except TransportError as error:
            refused = to_refusal(error)
            raise Refused(refused.kind, refused.message) from error


class _SessionStream:
    """The `ClientLink` of one session stream."""

    def __init__(self, client: str, scheduler: TransferScheduler) -> None:
        self.outgoing: SimpleQueue[FromServer | TransportError] = SimpleQueue()
        self._client, self._scheduler = client, scheduler

    def send(self, message: FromServer) -> None:
        """Queue a message."""
        self.outgoing.put(message)

    def cancel_transfers(self, assignment_id: int) -> None:
        """End the client's transfers of an assignment."""
        self._scheduler.cancel(self._client, assignment_id)

    def end(self, error: TransportError) -> None:
        """End the stream with an error."""
        self.outgoing.put(error)
