"""The upload of one client's answer: the checks of its content, and the staging of its pieces.

A piece takes five steps. The transport's call passes it to `UploadCall.accept`, which checks that the answer is still
wanted. `PendingUpload.accept` adds the tensor's name to an error. `Inbox.accept` checks the position and the checksum.
`StagedUpdate.append` checks the elements, and stages them in memory or on disk.
"""

import math
import threading
from concurrent.futures import Future
from itertools import islice
from typing import TYPE_CHECKING

from flcore_kernels import KernelError
from flcore_layout import Layout, SegmentRange
from flcore_transport import Inbox, PieceError, ProtocolMismatch, Receipt, Refused, TransportError
from flcore_transport.piece_format import piece_bytes

from flcore.aggregation.staged_update import StagedUpdate
from flcore.errors import (
    CorruptUpdate,
    FlcoreError,
    OutOfBounds,
    RecordError,
    StagingError,
    TensorMismatch,
    Untimely,
    UpdateError,
    WeightError,
)
from flcore.job.contract import Bounds
from flcore.job.messages import MAX_METRIC_NAME, AnswerContent, decode_spec
from flcore.model.wire_format import WireFormat
from flcore.server.events import Observer, ignore_events
from flcore.server.history import Participation
from flcore.server.open_attempt import OpenAttempt
from flcore.server.task_attempt import Verdict
from flcore.server.transfer_events import UploadBegan, UploadEnded
from flcore.text import printable

if TYPE_CHECKING:
    from flcore.server.federation_state import FederationState

MAX_METRIC_MAGNITUDE = 1e30

LOWER_LEVEL_ERRORS = (KernelError, TransportError)
"""Errors of the packages below. They are `FlcoreError`s, but mean a fault of the server and not of an update."""


def check_content(content: AnswerContent, client: str, returns: str, bounds: Bounds) -> None:
    """Raise an `UpdateError` unless an answer's kind, weight and number of metrics are within the contract."""
    if content.returns != returns:
        raise UpdateError(f"the task returns {returns}, it sent {content.returns}", client=client)
    # `AdmissionLimits.check_weight` admits 0. Here, such an update would count for the quorum and contribute nothing.
    if not (math.isfinite(content.weight) and content.weight > 0):
        raise WeightError(f"a weight is a finite number > 0, not {content.weight}", client=client)
    if content.weight > bounds.max_weight:
        raise OutOfBounds(
            f"its weight {content.weight:g} is more than max_weight = {bounds.max_weight:g}", client=client
        )
    if len(content.metrics) > bounds.max_metrics:
        raise OutOfBounds(
            f"{len(content.metrics)} metrics are more than max_metrics = {bounds.max_metrics}", client=client
        )


def check_tensors(content: AnswerContent, layout: Layout, client: str, wire_format: WireFormat) -> None:
    """Raise a `TensorMismatch` unless an answer announces exactly the model's tensors, in the contract's wire format.

    Nothing is allocated from the announced shapes: after this check, only the server's own spec is used.
    """
    spec = wire_format.spec
    if content.tensors is not None:
        spec.require_match(decode_spec(content.tensors), client=client)
    if content.spec_fingerprint != spec.fingerprint:
        raise TensorMismatch(
            f"its model has fingerprint {printable(content.spec_fingerprint, 16) or 'none'}, "
            f"expected {spec.fingerprint[:16]}",
            client=client,
        )
    if layout != wire_format.layout:
        raise TensorMismatch("its pieces are not laid out as its fingerprint and the contract say", client=client)


def validate_metrics(content: AnswerContent) -> tuple[dict[str, float], dict[str, str]]:
    """Return an answer's valid metrics, and the reason of each invalid one.

    An invalid metric is dropped. The rest of the answer counts.
    """
    valid: dict[str, float] = {}
    invalid: dict[str, str] = {}
    for name, value in content.metrics.items():
        if not 0 < len(name) <= MAX_METRIC_NAME or not name.isprintable():
            invalid[printable(name, 32)] = f"a metric's name has 1 to {MAX_METRIC_NAME} characters that can be printed"
        elif isinstance(value, bool) or not isinstance(value, int | float):
            invalid[name] = f"it is a {type(value).__name__}, expected a number"
        elif not abs(value) <= MAX_METRIC_MAGNITUDE:  # also refuses NaN
            invalid[name] = f"it is {printable(repr(value), 40)}, expected a number of at most {MAX_METRIC_MAGNITUDE:g}"
        else:
            valid[name] = float(value)
    return valid, invalid


class _StagingSink:
    """Passes the elements of each piece to a staged update, in their form on the wire."""

    def __init__(self, staged: StagedUpdate | None) -> None:
        self._staged = staged

    def write(self, range_: SegmentRange, body: memoryview) -> None:
        if self._staged is not None:
            self._staged.append(range_, body)


class PendingUpload:
    """An announced answer. It outlives the calls that carry it: a new call resumes where the last one broke off.

    `lock` is held while a piece is stored, so that two calls of one answer never mix. A thread that holds it may take
    the lock of `FederationState`, and never the other way round.

    This object refers to no call and no attempt. A reference cycle would keep a whole update in memory until the
    garbage collector runs.

    Attributes:
        key: Distinguishes the answers of a client: the digest of the content.
        content: The announcement.
        client: The name of the client.
        staged: The staged update. None for an answer of metrics alone.
        metrics: The valid metrics.
        invalid_metrics: The reason of each metric that was dropped.
        inbox: Checks pieces and passes them to `staged`.
        call_token: Identifies the newest call. Older calls may not add pieces.
        received_bytes: Bytes of the received pieces, headers included.
        participation: The answer's entry in the history. None until it is committed.
    """

    def __init__(
        self, key: str, content: AnswerContent, wire_format: WireFormat, client: str, staged: StagedUpdate | None
    ) -> None:
        self.key, self.content, self.client, self.staged = key, content, client, staged
        self.metrics, self.invalid_metrics = validate_metrics(content)
        self.lock = threading.Lock()
        self.inbox = Inbox(Layout() if staged is None else wire_format.layout, _StagingSink(staged))
        if staged is not None:
            self.inbox.received = staged.appended  # pieces that came before the server was restarted
        self.call_token = object()
        self.received_bytes = sum(
            piece_bytes(range_.dtype, range_.count) for range_ in islice(wire_format.pieces, self.inbox.received)
        )
        self.participation: Participation | None = None
        self._spec = wire_format.spec

    def accept(self, piece: bytes) -> None:
        """Store the next piece, or raise an `UpdateError` that names the tensor."""
        try:
            self.inbox.accept(piece)
        except (PieceError, ProtocolMismatch) as error:
            expected = self.inbox.piece_ranges[min(self.inbox.received, len(self.inbox.piece_ranges) - 1)]
            tensor, _ = self._spec.segments[expected.segment].locate(expected.first)
            raise CorruptUpdate(str(error), client=self.client, tensor=tensor.name) from error
        self.received_bytes += len(piece)

    def discard(self) -> None:
        """Free the staged update."""
        if self.staged is not None:
            self.staged.discard()


class UploadCall:
    """One call that carries an answer: the transport's `IncomingUpload`. The newest call of an upload owns it."""

    def __init__(
        self,
        state: "FederationState",
        open_attempt: OpenAttempt,
        upload: PendingUpload,
        observe: Observer = ignore_events,
    ) -> None:
        self._state, self._open_attempt, self._upload, self._observe = state, open_attempt, upload, observe
        self._token = object()
        with upload.lock:
            upload.call_token = self._token

    @property
    def received(self) -> int:
        """The number of pieces that were received, in all calls."""
        return self._upload.inbox.received

    @property
    def expected(self) -> int:
        """The number of all pieces of the upload."""
        return len(self._upload.inbox.piece_ranges)

    def begin(self) -> "Future[None]":
        """Request memory, as the call has a window now. The future is done once the first piece may come."""
        aggregator, staged, granted = self._open_attempt.aggregator, self._upload.staged, Future[None]()
        if aggregator is None or staged is None:
            granted.set_result(None)
            return granted
        attempt, upload = self._open_attempt, self._upload
        self._state.memory_requested(attempt, upload)

        def on_granted(_: object) -> None:
            self._state.memory_granted(attempt, upload)
            if not upload.inbox.is_complete:
                self._observe(UploadBegan(attempt.task, attempt.round, upload.client, upload.received_bytes))
            granted.set_result(None)

        # The transport may cancel the future of a call that ends. This one cannot be cancelled: `on_granted` sets it
        # later, and the memory stays with the upload for the call that resumes it.
        granted.set_running_or_notify_cancel()
        aggregator.allocate(staged).add_done_callback(lambda _: staged.acquire_next().add_done_callback(on_granted))
        return granted

    def accept(self, piece: bytes) -> "Future[None] | None":
        """Store the next piece. A bad piece fails its client in this attempt, and changes nothing else.

        A future instead of a wait: no thread is blocked while one of many uploads waits for memory.

        Returns:
            None if the next piece may come at once, else a future that is done once there is memory for it.

        Raises:
            Refused: The answer is not wanted any more, a newer call carries it, or the piece is bad.
        """
        upload = self._upload
        with upload.lock:
            if upload.call_token is not self._token:
                raise Refused(Untimely.kind, f"client {upload.client!r}: a newer call carries this upload now")
            verdict = self._state.verdict_for(self._open_attempt, upload)
            if verdict is not Verdict.ACCEPTED:
                raise refused_untimely(upload.client, verdict)
            bad_piece = self._store(piece)
        if bad_piece is not None:  # without the upload's lock: observers hear of the failure
            is_at_fault = not isinstance(bad_piece, StagingError)
            reason = failure_reason(bad_piece)
            self._state.fail(self._open_attempt, upload.client, reason, upload=upload, is_at_fault=is_at_fault)
            raise as_refused(bad_piece) from bad_piece
        attempt, is_complete = self._open_attempt, upload.inbox.is_complete
        self._state.piece_received(attempt, upload, len(piece))
        if is_complete:
            self._observe(UploadEnded(attempt.task, attempt.round, upload.client, upload.received_bytes))
        ready = None if upload.staged is None or upload.inbox.is_complete else upload.staged.acquire_next()
        return None if ready is None or ready.done() else ready

    def _store(self, piece: bytes) -> FlcoreError | None:
        """Store the next piece, or return the error of a bad one."""
        try:
            self._upload.accept(piece)
        except LOWER_LEVEL_ERRORS:
            raise
        except FlcoreError as error:
            return error
        return None

    def commit(self) -> Receipt:
        """Commit the answer, and return the receipt."""
        self._state.commit(self._open_attempt, self._upload)
        return Receipt(self._open_attempt.attempt.assignment_id)

    def end(self) -> None:
        """The call has ended. A call that a newer one has replaced changes nothing."""
        if self._upload.call_token is self._token:
            self._state.upload_call_ended(self._open_attempt, self._upload)


def refused_untimely(client: str, verdict: Verdict) -> Refused:
    """Return the refusal of an answer that cannot count, or not any more."""
    return as_refused(Untimely(f"not taken: {verdict.value}", client=client))


def failure_reason(error: BaseException) -> str:
    """Return why a client fails whose answer is not taken, for log and history, which name a refusal by its word.

    An answer that the server's disk does not keep is none that is refused.
    """
    is_refusal = isinstance(error, FlcoreError) and not isinstance(
        error, (*LOWER_LEVEL_ERRORS, StagingError, RecordError)
    )
    return f"refused: {error}" if is_refusal else str(error)


def as_refused(error: FlcoreError) -> Refused:
    """Return an error as the refusal that its client receives."""
    if isinstance(error, StagingError | RecordError):  # its message has paths of the server
        return Refused(StagingError.kind, "the server could not store the answer")
    return Refused(getattr(error, "kind", "malformed"), str(error))
