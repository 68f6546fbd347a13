"""One client's answer on its way in: what it may say beside its pieces, and where its pieces go."""

import math
import threading

from flcore_transport import Inbox, Layout, PieceError, PieceRange, ProtocolMismatch

from flcore.aggregation.update import StagedUpdate
from flcore.errors import CorruptUpdate, OutOfBounds, TensorMismatch, UpdateError, WeightError
from flcore.job.contract import Bounds
from flcore.job.messages import UpdateMessage, spec_of
from flcore.model.form import Form

MAX_METRIC = 1e30


def check_message(message: UpdateMessage, client: str, returns: str, bounds: Bounds) -> None:
    """Raise an `UpdateError` unless an answer's kind, weight and metrics are what the contract allows."""
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
    for name, value in message.metrics.items():
        if not abs(value) <= MAX_METRIC:
            raise OutOfBounds(f"metric {name!r} is {value}; metrics are numbers up to {MAX_METRIC:g}", client=client)


def check_tensors(message: UpdateMessage, layout: Layout, client: str, form: Form) -> None:
    """Raise a `TensorMismatch` unless an answer announces exactly the model's tensors, in the form asked for."""
    spec = form.spec
    if message.tensors is not None:
        spec.require(spec_of(message.tensors), client=client)
    if message.fingerprint != spec.fingerprint:
        raise TensorMismatch(
            f"its model has fingerprint {message.fingerprint[:16] or 'none'}, expected {spec.fingerprint[:16]}",
            client=client,
        )
    if layout != form.layout:
        raise TensorMismatch("its pieces are not laid out as its fingerprint and the contract say", client=client)


class _Staging:
    """The sink that hands the elements of a piece to a staged update, as they came."""

    def __init__(self, staged: StagedUpdate | None) -> None:
        self._staged = staged

    def write(self, piece: PieceRange, body: memoryview) -> None:
        if self._staged is not None:
            self._staged.adopt(piece, body)


class Intake:
    """An answer that has been announced. It outlives the streams that carry it: a new one goes on where one broke off.

    `staged` is None for an answer of metrics alone. `quiet_since` is when its last piece came, and None once all are
    in; what it waits for its turn does not count, and a connection that breaks and comes back does. `in_line_since` is
    when it began to wait for its turn, `waiting_since` when that is room in memory. Nothing in here refers back to what
    holds it: a model's worth of pieces is freed at once, and not when the garbage collector finds it.
    """

    def __init__(self, message: UpdateMessage, form: Form, client: str, staged: StagedUpdate | None) -> None:
        self.message, self.client, self.staged = message, client, staged
        self.lock = threading.Lock()
        self.inbox = Inbox(Layout() if staged is None else form.layout, _Staging(staged))
        self.stream = object()
        self.bytes = 0
        self.quiet_since: float | None = None
        self.in_line_since: float | None = None
        self.waiting_since: float | None = None
        self._spec = form.spec

    def due_at(self, patience_s: float, timeout_s: float) -> tuple[float, float]:
        """Return when it should go to disk, and when it has failed, if nothing changes (infinity: never).

        It waits for room as long as others give some back, and keeps its own as long as pieces come.
        """
        if self.staged is None or self.quiet_since is None:
            return math.inf, math.inf
        if self.waiting_since is not None:
            return max(self.waiting_since, self.staged.room_released_at) + patience_s, math.inf
        if self.in_line_since is not None:
            return math.inf, math.inf
        return math.inf if self.staged.is_on_disk else self.quiet_since + patience_s, self.quiet_since + timeout_s

    def stand_in_line(self, now: float) -> None:
        """A stream of it begins, and waits for its turn."""
        self.in_line_since = now
        self.quiet_since = now if self.quiet_since is None and not self.inbox.is_complete else self.quiet_since

    def leave_line(self, now: float) -> None:
        """It is its turn, or its stream has ended."""
        if self.in_line_since is not None and self.quiet_since is not None:
            self.quiet_since += now - self.in_line_since
        self.in_line_since = self.waiting_since = None

    def accept(self, piece: bytes) -> None:
        """Take the next piece, or raise an `UpdateError` that names the tensor."""
        try:
            self.inbox.accept(piece)
        except (PieceError, ProtocolMismatch) as error:
            expected = self.inbox.plan[min(self.inbox.received, len(self.inbox.plan) - 1)]
            tensor, _ = self._spec.segments[expected.segment].at(expected.first)
            raise CorruptUpdate(str(error), client=self.client, tensor=tensor.name) from error
        self.bytes += len(piece)
