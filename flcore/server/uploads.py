"""The upload of one client's answer: its message, and the staging of its pieces.

A piece takes five steps from the call to the store: the transport's call hands it to `UploadCall.accept`, which
checks that the answer is still wanted; `PendingUpload.accept` names the tensor if something is wrong; `Inbox.accept`
checks its place and its hash; `StagedUpdate.append` checks its elements and puts them into memory or a file.
"""

import math
import threading
from concurrent.futures import Future
from typing import TYPE_CHECKING

from flcore_kernels import KernelError
from flcore_layout import Layout, SegmentRange
from flcore_transport import Inbox, PieceError, ProtocolMismatch, Receipt, Refused, TransportError

from flcore.aggregation.staged_update import StagedUpdate
from flcore.errors import (
    CorruptUpdate,
    FlcoreError,
    OutOfBounds,
    StagingError,
    TensorMismatch,
    Untimely,
    UpdateError,
    WeightError,
)
from flcore.job.contract import Bounds
from flcore.job.messages import MAX_METRIC_NAME, UpdateMessage, decode_spec
from flcore.model.wire_format import WireFormat
from flcore.server.history import Participation
from flcore.server.open_round import OpenRound
from flcore.server.task_round import Verdict
from flcore.text import printable

if TYPE_CHECKING:
    from flcore.server.round_registry import RoundRegistry

MAX_METRIC_MAGNITUDE = 1e30

LOWER_LEVEL_ERRORS = (KernelError, TransportError)
"""Errors of the packages below. They are `FlcoreError`s, but say nothing about one client's update."""


def check_message(message: UpdateMessage, client: str, returns: str, bounds: Bounds) -> None:
    """Raise an `UpdateError` unless an answer's kind, weight and number of metrics are what the contract allows."""
    if message.returns != returns:
        raise UpdateError(f"the task returns {returns}, it sent {message.returns}", client=client)
    if not (math.isfinite(message.weight) and message.weight > 0):
        raise WeightError(f"a weight is a finite number > 0, not {message.weight}", client=client)
    if message.weight > bounds.max_weight:
        raise OutOfBounds(
            f"its weight {message.weight:g} is more than max_weight = {bounds.max_weight:g}", client=client
        )
    if len(message.metrics) > bounds.max_metrics:
        raise OutOfBounds(
            f"{len(message.metrics)} metrics are more than max_metrics = {bounds.max_metrics}", client=client
        )


def check_tensors(message: UpdateMessage, layout: Layout, client: str, wire_format: WireFormat) -> None:
    """Raise a `TensorMismatch` unless an answer announces exactly the model's tensors, in the wire format asked for."""
    spec = wire_format.spec
    if message.tensors is not None:
        spec.require_match(decode_spec(message.tensors), client=client)
    if message.fingerprint != spec.fingerprint:
        raise TensorMismatch(
            f"its model has fingerprint {printable(message.fingerprint, 16) or 'none'}, "
            f"expected {spec.fingerprint[:16]}",
            client=client,
        )
    if layout != wire_format.layout:
        raise TensorMismatch("its pieces are not laid out as its fingerprint and the contract say", client=client)


def validate_metrics(message: UpdateMessage) -> tuple[dict[str, float], dict[str, str]]:
    """Return an answer's metrics that are numbers, and of the others what is wrong with each.

    An invalid metric is dropped; the weights that came with it count.
    """
    valid: dict[str, float] = {}
    invalid: dict[str, str] = {}
    for name, value in message.metrics.items():
        if not 0 < len(name) <= MAX_METRIC_NAME or not name.isprintable():
            invalid[printable(name, 32)] = f"a metric's name has 1 to {MAX_METRIC_NAME} characters that can be printed"
        elif isinstance(value, bool) or not isinstance(value, int | float):
            invalid[name] = f"it is a {type(value).__name__}, expected a number"
        elif not abs(value) <= MAX_METRIC_MAGNITUDE:
            invalid[name] = f"it is {printable(repr(value), 40)}, expected a number of at most {MAX_METRIC_MAGNITUDE:g}"
        else:
            valid[name] = float(value)
    return valid, invalid


class _StagingSink:
    """The sink that hands the elements of a piece to a staged update, as they came."""

    def __init__(self, staged: StagedUpdate | None) -> None:
        self._staged = staged

    def write(self, piece: SegmentRange, body: memoryview) -> None:
        if self._staged is not None:
            self._staged.append(piece, body)


class PendingUpload:
    """An answer that has been announced. It outlives the streams that carry it: a new one goes on where one broke off.

    `key` tells it apart from other answers of its client. `staged` is None for an answer of metrics alone. `lock` is
    held while a piece is put away, so that two streams of one answer never mix. Nothing in here refers back to what
    holds it: a model's worth of pieces is freed at once, and not when the garbage collector finds it.
    """

    def __init__(
        self, key: str, message: UpdateMessage, wire_format: WireFormat, client: str, staged: StagedUpdate | None
    ) -> None:
        self.key, self.message, self.client, self.staged = key, message, client, staged
        self.metrics, self.invalid_metrics = validate_metrics(message)
        self.lock = threading.Lock()
        self.inbox = Inbox(Layout() if staged is None else wire_format.layout, _StagingSink(staged))
        self.call = object()
        self.bytes = 0
        self.participation: Participation | None = None
        self._spec = wire_format.spec

    def accept(self, piece: bytes) -> None:
        """Take the next piece, or raise an `UpdateError` that names the tensor."""
        try:
            self.inbox.accept(piece)
        except (PieceError, ProtocolMismatch) as error:
            expected = self.inbox.piece_ranges[min(self.inbox.received, len(self.inbox.piece_ranges) - 1)]
            tensor, _ = self._spec.segments[expected.segment].locate(expected.first)
            raise CorruptUpdate(str(error), client=self.client, tensor=tensor.name) from error
        self.bytes += len(piece)

    def discard(self) -> None:
        """Let its elements go."""
        if self.staged is not None:
            self.staged.discard()


class UploadCall:
    """One call that carries an answer: the transport's `IncomingUpload`. The newest stream of an answer owns it."""

    def __init__(self, rounds: "RoundRegistry", open_round: OpenRound, upload: PendingUpload) -> None:
        self._rounds, self._round, self._upload = rounds, open_round, upload
        self._call = object()
        with upload.lock:
            upload.call = self._call

    @property
    def received(self) -> int:
        """How many pieces are in."""
        return self._upload.inbox.received

    @property
    def expected(self) -> int:
        """How many pieces it has in all."""
        return len(self._upload.inbox.piece_ranges)

    def begin(self) -> "Future[None]":
        """The upload's turn has come; the future is done once there is memory for its pieces."""
        aggregator, staged, first = self._round.aggregator, self._upload.staged, Future[None]()
        if aggregator is None or staged is None:
            first.set_result(None)
            return first
        self._rounds.memory_requested(self._round, self._upload)

        def on_granted(_: object) -> None:
            self._rounds.memory_granted(self._round, self._upload)
            first.set_result(None)

        first.set_running_or_notify_cancel()  # a call that ends meanwhile takes nothing from the next one
        aggregator.allocate(staged).add_done_callback(lambda _: staged.acquire_next().add_done_callback(on_granted))
        return first

    def accept(self, piece: bytes) -> "Future[None] | None":
        """Take the next piece. What is wrong with it costs its client its place in the round, and nobody anything.

        Returns a future that is done once there is memory for the next piece, or None if there is some already.
        """
        upload = self._upload
        with upload.lock:
            if upload.call is not self._call:
                raise Refused(Untimely.kind, f"client {upload.client!r}: a newer stream carries this update now")
            verdict = self._rounds.verdict_for(self._round, upload)
            if verdict is not Verdict.ACCEPTED:
                raise untimely_refusal(upload.client, verdict)
            try:
                upload.accept(piece)
            except LOWER_LEVEL_ERRORS:  # a fault of the server's, not of the update
                raise
            except FlcoreError as error:
                is_at_fault = not isinstance(error, StagingError)
                self._rounds.fail(self._round, upload.client, str(error), upload=upload, is_at_fault=is_at_fault)
                raise refusal_for(error) from error
        self._rounds.piece_received(self._round, upload, len(piece))
        ready = None if upload.staged is None or upload.inbox.is_complete else upload.staged.acquire_next()
        return None if ready is None or ready.done() else ready

    def commit(self) -> Receipt:
        """Make the answer count."""
        self._rounds.commit(self._round, self._upload)
        return Receipt(self._round.state.number)

    def end(self) -> None:
        """The call has ended; from now on its client's silence counts."""
        if self._upload.call is self._call:
            self._rounds.upload_call_ended(self._round, self._upload)


def untimely_refusal(client: str, verdict: Verdict) -> Refused:
    """Return the refusal of what cannot count any more."""
    return refusal_for(Untimely(f"not taken: {verdict.value}", client=client))


def refusal_for(error: FlcoreError) -> Refused:
    """Return an error as its client is told it."""
    if isinstance(error, StagingError):  # it names files of the server's
        return Refused(error.kind, f"client {error.client!r}: the server could not store its update")
    return Refused(getattr(error, "kind", "malformed"), str(error))
