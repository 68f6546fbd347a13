"""An answer to an order: what is said, and where its pieces come from; the same bytes as often as it is sent."""

import secrets
from dataclasses import dataclass

from flcore_transport import Layout, Order, PieceRange, Source

from flcore.client.task import Update
from flcore.errors import TensorMismatch
from flcore.job.messages import UpdateMessage, tensors_of
from flcore.model.compression import Compressor, ErrorFeedback
from flcore.model.model import NamedArrays
from flcore.model.spec import ModelSpec


@dataclass(eq=False)
class Answer:
    """What a client answered last. It is held until the client begins an order that it does not answer.

    Only then what rounding has left out is kept (`let_go`), so that pieces made once more have the same bytes. `is_in`
    says that there was a receipt.
    """

    order: Order
    content: bytes
    source: Source
    feedback: ErrorFeedback | None
    is_in: bool = False

    def is_to(self, order: Order) -> bool:
        """Whether this answers an order: the same one once more, or one that asks the same under another number."""
        return (order.content, order.payload_id) == (self.order.content, self.order.payload_id)

    def let_go(self) -> None:
        """Another order begins: if the server has this answer, keep what rounding left out of it for the next one."""
        if self.is_in and self.feedback is not None and isinstance(self.source, Compressor):
            self.feedback.record(self.source)


class Nothing:
    """The payload of an answer of metrics alone."""

    layout = Layout()

    def read(self, piece: PieceRange) -> list[bytes]:
        """Raise `IndexError`: there are no pieces."""
        raise IndexError(f"there is no piece to read at {piece}")


def offered(update: Update, returns: str, spec: ModelSpec) -> tuple[UpdateMessage, Source]:
    """Return an update as it is announced and as it is sent. Tensors that do not fit are the server's to refuse."""
    fields = {"returns": returns, "attempt": secrets.token_hex(8), "weight": float(update.weight)}
    metrics = {name: float(value) for name, value in update.metrics.items()}
    if returns == "metrics":
        return UpdateMessage.model_validate({**fields, "metrics": metrics}), Nothing()
    theirs = ModelSpec.of(update.arrays)
    try:
        spec.require_match(theirs)
    except TensorMismatch:
        message = {**fields, "metrics": metrics, "fingerprint": theirs.fingerprint, "tensors": tensors_of(theirs)}
        return UpdateMessage.model_validate(message), NamedArrays(theirs, update.arrays)
    message = {**fields, "metrics": metrics, "fingerprint": spec.fingerprint}
    return UpdateMessage.model_validate(message), NamedArrays(spec, update.arrays)
