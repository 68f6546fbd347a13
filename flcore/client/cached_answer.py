"""A client's answers, and what a cache of them does. Sending an answer again sends the same bytes."""

import secrets
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

from flcore_layout import Layout, SegmentRange
from flcore_transport import PayloadSource, TaskAssignment

from flcore.client.answer_outbox import AnswerOutbox
from flcore.client.task import Update
from flcore.errors import TensorMismatch
from flcore.job.messages import AnswerContent, TaskContent, encode_tensors
from flcore.model.model import NamedArrays
from flcore.model.spec import ModelSpec
from flcore.model.wire_format import WireFormat

MAX_CONTENT_BYTES = (1 << 20) - 8192
"""A server refuses a control message of more than 1 MiB; the rest is for the request's other fields."""


@dataclass(frozen=True, eq=False)
class CachedAnswer:
    """An answer that can be sent, and sent again.

    Attributes:
        assignment: The assignment that it was computed for.
        task: The name of the task.
        round: The number of the round.
        content: The content of the upload request.
        source: The source of the pieces.
        wire_format: The wire format of a compressed update. None if the answer is not compressed.
    """

    assignment: TaskAssignment
    task: str
    round: int
    content: bytes
    source: PayloadSource
    wire_format: WireFormat | None = None

    @cached_property
    def outbox(self) -> AnswerOutbox:
        """The sending side, the same one each time that the answer is sent."""
        return AnswerOutbox(self.source)

    def answers(self, assignment: TaskAssignment) -> bool:
        """Whether this answers an assignment: one with the same content and model, under the same or another id."""
        return (assignment.content, assignment.payload_id) == (self.assignment.content, self.assignment.payload_id)

    def ends_with(self, assignment: TaskAssignment, content: TaskContent) -> bool:
        """Whether an assignment with this content ends the time in which a server may ask for this answer again."""
        return self.round != content.round or (self.task == content.task and not self.answers(assignment))

    def can_change_unseen(self, content: TaskContent) -> bool:
        """Whether an assignment with this content may overwrite arrays that have not been sent: nothing finds that."""
        return self.task != content.task and not self.outbox.has_sent_all


class AnswerCache(Protocol):
    """Keeps a client's answers of the current round: the last one of each task.

    An answer ends with an assignment of another round, or with one of its task that it does not answer. Until then a
    server that has lost it gets it again.

    The rounding errors of a compressed update count only if the server has received it when it ends. Until then the
    server may ask for it again, and gets the same bytes.
    """

    def begin_run(self, run: str) -> None:
        """Drop everything of another run than this one, as that of a server that was started with --fresh."""
        ...

    def find(self, assignment: TaskAssignment, content: TaskContent) -> CachedAnswer | None:
        """Return the answer to an assignment with this content, if there is one. Drops the answers that it ends."""
        ...

    def keep(self, answer: CachedAnswer) -> CachedAnswer:
        """Keep an answer, whose source is not compressed yet and to whose assignment there is none.

        Returns:
            The answer to send. Its source is compressed if the answer has a wire format.
        """
        ...

    def mark_received(self, answer: CachedAnswer) -> None:
        """The server has sent a receipt for an answer."""
        ...

    def forget(self, assignment: TaskAssignment) -> None:
        """Drop the answer to an assignment, which cannot be sent."""
        ...

    def clear(self) -> None:
        """Drop everything: the job is done."""
        ...


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


def encode_answer(content: AnswerContent) -> bytes:
    """Return the bytes of an answer's content. Raises `ValueError` if no server takes as many."""
    encoded = content.to_bytes()
    if len(encoded) > MAX_CONTENT_BYTES:
        raise ValueError(
            f"expected at most {MAX_CONTENT_BYTES:,} bytes beside the elements of tensors, got {len(encoded):,} with "
            f"{len(content.metrics):,} metrics; return fewer of them"
        )
    return encoded
