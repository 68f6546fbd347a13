"""An answer to an assignment: its message and the source of its pieces. Sending it again sends the same bytes."""

import secrets
from dataclasses import dataclass

from flcore_layout import Layout, SegmentRange
from flcore_transport import PayloadSource, TaskAssignment

from flcore.client.task import Update
from flcore.errors import TensorMismatch
from flcore.job.messages import AnswerContent, encode_tensors
from flcore.model.compression import Compressor, ErrorFeedback
from flcore.model.model import NamedArrays
from flcore.model.spec import ModelSpec


@dataclass(eq=False)
class CachedAnswer:
    """A client's last answer. It is kept until the client starts an assignment that it does not answer.

    Only then the rounding error is recorded (`release`), so that pieces that are encoded again have the same bytes.
    `is_received` is true once the server has sent a receipt.
    """

    assignment: TaskAssignment
    content: bytes
    source: PayloadSource
    feedback: ErrorFeedback | None
    is_received: bool = False

    def answers(self, assignment: TaskAssignment) -> bool:
        """Whether this answers an assignment: the same one again, or one with the same content under another number."""
        return (assignment.content, assignment.payload_id) == (self.assignment.content, self.assignment.payload_id)

    def release(self) -> None:
        """Another assignment starts: if the server has this answer, record its rounding error for the next one."""
        if self.is_received and self.feedback is not None and isinstance(self.source, Compressor):
            self.feedback.record(self.source)


class EmptyPayload:
    """The payload of an answer of metrics alone."""

    layout = Layout()

    def read(self, piece: SegmentRange) -> list[bytes]:
        """Raise `IndexError`: there are no pieces."""
        raise IndexError(f"there is no piece to read at {piece}")


def prepare_answer(update: Update, returns: str, spec: ModelSpec) -> tuple[AnswerContent, PayloadSource]:
    """Return an update as it is announced and as it is sent. Tensors that do not fit are the server's to refuse."""
    fields = {"returns": returns, "attempt": secrets.token_hex(8), "weight": float(update.weight)}
    metrics = {name: float(value) for name, value in update.metrics.items()}
    if returns == "metrics":
        return AnswerContent.model_validate({**fields, "metrics": metrics}), EmptyPayload()
    theirs = ModelSpec.of(update.arrays)
    try:
        spec.require_match(theirs)
    except TensorMismatch:
        message = {**fields, "metrics": metrics, "fingerprint": theirs.fingerprint, "tensors": encode_tensors(theirs)}
        return AnswerContent.model_validate(message), NamedArrays(theirs, update.arrays)
    message = {**fields, "metrics": metrics, "fingerprint": spec.fingerprint}
    return AnswerContent.model_validate(message), NamedArrays(spec, update.arrays)
