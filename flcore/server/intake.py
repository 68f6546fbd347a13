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

    `staged` is None for an answer of metrics alone. `quiet_since` is when its last piece came, and None as long as
    nobody waits for one. Nothing in here refers back to what holds it: a model's worth of pieces is freed at once, and
    not when the garbage collector finds it.
    """

    def __init__(self, message: UpdateMessage, form: Form, client: str, staged: StagedUpdate | None) -> None:
        self.message, self.client, self.staged = message, client, staged
        self.lock = threading.Lock()
        self.inbox = Inbox(Layout() if staged is None else form.layout, _Staging(staged))
        self.stream = object()
        self.bytes = 0
        self.quiet_since: float | None = None
        self._spec = form.spec

    @property
    def keeps_room(self) -> bool:
        """Whether it takes memory, or waits for some."""
        return self.staged is not None and not self.staged.is_on_disk

    def accept(self, piece: bytes) -> None:
        """Take the next piece, or raise an `UpdateError` that names the tensor."""
        try:
            self.inbox.accept(piece)
        except (PieceError, ProtocolMismatch) as error:
            expected = self.inbox.plan[min(self.inbox.received, len(self.inbox.plan) - 1)]
            tensor, _ = self._spec.segments[expected.segment].at(expected.first)
            raise CorruptUpdate(str(error), client=self.client, tensor=tensor.name) from error
        self.bytes += len(piece)
