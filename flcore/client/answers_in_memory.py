"""The cache of a client's answers in memory. It ends with the process."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from flcore_layout import Layout, SegmentRange
from flcore_transport import Buffer, TaskAssignment
from flcore_transport.piece_format import decode_piece

from flcore.client.cached_answer import CachedAnswer
from flcore.errors import UpdateError
from flcore.job.messages import TaskContent
from flcore.model.compression import Compressor, ErrorFeedback
from flcore.model.wire_format import WireFormat


class EncodedPayload:
    """The source of a payload whose pieces are in memory as they are sent. It refers to no array of a task."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self._bodies: dict[SegmentRange, Buffer] = {}

    def add(self, piece: SegmentRange, body: Buffer) -> None:
        """Add the bytes of a piece."""
        self._bodies[piece] = body

    def read(self, range_: SegmentRange) -> Sequence[Buffer]:
        """Return the bytes of a piece. Never copies."""
        return [self._bodies[range_]]


@dataclass(eq=False)
class AnswerInMemory:
    """An answer, and what is known of it.

    Attributes:
        answer: The answer to send.
        is_received: Whether a receipt has come.
        is_encoded: Whether its source is an `EncodedPayload`. Then its rounding errors are those that the task's next
            update adds.
    """

    answer: CachedAnswer
    is_received: bool = False
    is_encoded: bool = False


class AnswersInMemory:
    """An `AnswerCache` in memory.

    The arrays of an answer are the task's own and may refer to the client's model, so another task may overwrite them.
    Before another task of the round begins,

    - a compressed answer that is received is encoded, and its rounding errors are recorded: its pieces take a half or a
      quarter of the memory of its arrays, to which nothing refers any more;
    - a compressed answer without a receipt ends: its rounding errors could not be computed any more when one comes;
    - another answer keeps its arrays. Its outbox finds a change of pieces that have been sent. It ends if there are
      others.

    Args:
        notify: Called with one line of text per notice for the client's owner.
    """

    def __init__(self, notify: Callable[[str], None]) -> None:
        self._notify, self._run = notify, ""
        self._answers: dict[str, AnswerInMemory] = {}
        self._feedback: dict[str, ErrorFeedback] = {}

    def begin_run(self, run: str) -> None:
        """Drop everything of another run."""
        if run != self._run:
            self.clear()
        self._run = run

    def find(self, assignment: TaskAssignment, content: TaskContent) -> CachedAnswer | None:
        """Return the answer to an assignment with this content, if there is one. Drops the answers that it ends."""
        for held in list(self._answers.values()):
            if held.answer.ends_with(assignment, content):
                self._end(held)
            elif held.answer.task != content.task and not held.is_encoded:
                self._outlive_arrays(held)
        found = self._answers.get(content.task)
        if found is None:
            return None
        found.is_received = False  # a server that asks for an answer again has not counted it
        return found.answer

    def keep(self, answer: CachedAnswer) -> CachedAnswer:
        """Keep an answer, and return the one to send."""
        if answer.wire_format is not None:
            feedback = self._error_feedback(answer.task, answer.wire_format)
            answer = replace(answer, source=Compressor(answer.wire_format, answer.source, feedback))
        self._answers[answer.task] = AnswerInMemory(answer)
        return answer

    def mark_received(self, answer: CachedAnswer) -> None:
        """The server has sent a receipt for an answer."""
        held = self._answers.get(answer.task)
        if held is not None and held.answer.content == answer.content:
            held.is_received = True

    def forget(self, assignment: TaskAssignment) -> None:
        """Drop the answer to an assignment."""
        for held in list(self._answers.values()):
            if held.answer.answers(assignment):
                held.is_received = False
                self._end(held)

    def clear(self) -> None:
        """Drop all answers and all rounding errors."""
        self._answers.clear()
        self._feedback.clear()

    def _end(self, held: AnswerInMemory) -> None:
        """Drop an answer. The task's next update adds its rounding errors if it is received."""
        del self._answers[held.answer.task]
        if held.is_received and not held.is_encoded:
            self._record_rounding_errors(held.answer, None)
        elif held.is_encoded and not held.is_received:
            # The errors of the update before it were replaced when it had a receipt.
            self._begin_feedback_anew(held.answer.task, "the server has not counted the last update after its receipt")

    def _outlive_arrays(self, held: AnswerInMemory) -> None:
        """Make an answer one that no other task can change unseen, or drop it."""
        answer = held.answer
        if answer.wire_format is None:
            if not answer.outbox.has_sent_all:
                del self._answers[answer.task]
            return
        del self._answers[answer.task]  # and put back at the end, whatever an array of the task raises
        encoded = EncodedPayload(answer.wire_format.layout)
        if held.is_received and self._record_rounding_errors(answer, encoded):
            self._answers[answer.task] = AnswerInMemory(replace(answer, source=encoded), True, is_encoded=True)

    def _record_rounding_errors(self, answer: CachedAnswer, encoded: EncodedPayload | None) -> bool:
        """Make the rounding errors of a received update those that the task's next update adds.

        Args:
            answer: The answer, whose arrays no task has overwritten since it was sent.
            encoded: Gets the pieces. None: they are not kept.

        Returns:
            Whether the update was compressed and its arrays are those that were sent.
        """
        if not isinstance(answer.source, Compressor):
            return False
        # The errors are replaced piece by piece. If an exception ends that halfway, the feedback starts anew.
        feedback = self._feedback.pop(answer.task)

        def body_of(index: int) -> memoryview:
            piece = answer.outbox.piece_ranges[index]
            encoded_piece = answer.outbox.piece(index)  # raises `AnswerChanged`
            body = decode_piece(encoded_piece, piece.part, piece.segment, piece.first, piece.dtype, piece.count)
            if encoded is not None:
                encoded.add(piece, body)
            return body

        try:
            feedback.record(answer.source, body_of)
        except UpdateError as error:
            self._begin_feedback_anew(answer.task, str(error))
            return False
        self._feedback[answer.task] = feedback
        return True

    def _begin_feedback_anew(self, task: str, reason: str) -> None:
        self._feedback.pop(task, None)
        self._notify(f"the error feedback of task {task!r} starts anew: {reason}")

    def _error_feedback(self, task: str, wire_format: WireFormat) -> ErrorFeedback:
        """Return the error feedback of a task. It starts anew if the wire format has changed."""
        feedback = self._feedback.get(task)
        if feedback is None or feedback.wire_format != wire_format:
            feedback = self._feedback[task] = ErrorFeedback(wire_format)
        return feedback
