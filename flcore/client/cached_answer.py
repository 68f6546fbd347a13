"""A client's answer: its content and the source of its pieces. Sending it again sends the same bytes."""

import secrets
from dataclasses import dataclass
from typing import Any

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
    """A client's last answer. The client keeps it until it starts an assignment that this does not answer.

    The rounding errors of a compressed update are recorded only then (`record_rounding_errors`). Until then the update
    may have to be encoded again, and must get the same bytes.

    Attributes:
        assignment: The assignment that it was computed for.
        content: The content of the upload request.
        source: The source of the pieces.
        feedback: The rounding errors of the task's earlier updates. None if the update is not compressed.
        is_received: Whether the server has sent a receipt.
    """

    assignment: TaskAssignment
    content: bytes
    source: PayloadSource
    feedback: ErrorFeedback | None
    is_received: bool = False

    def answers(self, assignment: TaskAssignment) -> bool:
        """Whether this answers an assignment: one with the same content and model, under the same or another id."""
        return (assignment.content, assignment.payload_id) == (self.assignment.content, self.assignment.payload_id)

    def record_rounding_errors(self) -> None:
        """Add the update's rounding errors to the task's error feedback, if the server has received the update.

        Called once, before the answer is dropped.
        """
        if self.is_received and self.feedback is not None and isinstance(self.source, Compressor):
            self.feedback.record(self.source)


class EmptyPayload:
    """The payload of an answer of metrics alone."""

    layout = Layout()

    def read(self, range_: SegmentRange) -> list[bytes]:
        """Raise `IndexError`: there are no pieces."""
        raise IndexError(f"there is no piece to read at {range_}")


def prepare_answer(update: Update, returns: str, spec: ModelSpec) -> tuple[AnswerContent, PayloadSource]:
    """Return the content of an answer, and the source of its pieces.

    Tensors that differ from the model's are announced as they are: the server refuses them, and its refusal names the
    difference.
    """
    fields: dict[str, Any] = {
        "returns": returns,
        "upload_id": secrets.token_hex(8),
        "weight": float(update.weight),
        "metrics": {name: float(value) for name, value in update.metrics.items()},
    }
    if returns == "metrics":
        return AnswerContent(**fields), EmptyPayload()
    own_spec = ModelSpec.of(update.arrays)
    try:
        spec.require_match(own_spec)
    except TensorMismatch:
        own_tensors = encode_tensors(own_spec)
        content = AnswerContent(**fields, spec_fingerprint=own_spec.fingerprint, tensors=own_tensors)
        return content, NamedArrays(own_spec, update.arrays)
    # The model's spec, not the update's own: the tensors may be in another order.
    return AnswerContent(**fields, spec_fingerprint=spec.fingerprint), NamedArrays(spec, update.arrays)
