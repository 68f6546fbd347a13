"""The cache of a client's answers on disk. It survives the client's process."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from flcore_transport import TaskAssignment

from flcore.client.cached_answer import CachedAnswer
from flcore.client.state_directory import ANSWER_PATTERN, FEEDBACK_PATTERN, StateDirectory
from flcore.client.stored_answer import (
    StoredAnswer,
    adopt_residuals,
    answer_directory,
    feedback_name,
    mark_asked_again,
    mark_received,
    read_answer,
    remove_answer,
    write_answer,
)
from flcore.client.stored_feedback import StoredFeedback, residual_layout
from flcore.client.stored_pieces import StoredPieces
from flcore.errors import CorruptUpdate
from flcore.job.messages import TaskContent
from flcore.model.compression import Compressor
from flcore.model.wire_format import WireFormat


@dataclass(eq=False)
class KeptAnswer:
    """An answer to a task, and what is known of it.

    Attributes:
        answer: The answer to send.
        stored: The answer on disk. None if the disk has not taken it.
        is_received: Whether a receipt has come.
        is_of_earlier_process: Whether an earlier process has written it, and this one has not sent it.
    """

    answer: CachedAnswer
    stored: StoredAnswer | None = None
    is_received: bool = False
    is_of_earlier_process: bool = False


class AnswersOnDisk:
    """An `AnswerCache` in a state directory.

    An answer is on disk before it is returned for sending, and is sent from there: memory holds a piece of it at a
    time, and none of the update after `keep`. An answer that the disk does not take is sent from memory, with a notice.

    Args:
        state: The directory.
        notify: Called with one line of text per notice for the client's owner.
    """

    def __init__(self, state: StateDirectory, notify: Callable[[str], None]) -> None:
        self._state, self._directory, self._notify = state, state.path, notify
        self._feedback: dict[str, StoredFeedback] = {}
        self._answers: dict[str, KeptAnswer] = {}
        for directory in sorted(self._directory.glob(ANSWER_PATTERN)):
            self._read(directory)

    def begin_run(self, run: str) -> None:
        """Drop everything of another run, also what an earlier process has left."""
        earlier = self._state.read_run()
        if earlier == run:
            return
        if self._has_files():
            where = "an unknown run" if not earlier else f"run {earlier!r}"
            self._notify(
                f"{self._directory}: the updates and rounding errors are of {where}, and the server's run is {run!r}: "
                "they are removed"
            )
        self.clear()
        if not self._has_files():  # else they are still of the earlier run, and removed by the next process
            with self._disk_errors("the id of the run is not recorded"):
                self._state.record_run(run)

    def find(self, assignment: TaskAssignment, content: TaskContent) -> CachedAnswer | None:
        """Return the answer to an assignment with this content, if there is one. Drops the answers that it ends."""
        for kept in list(self._answers.values()):
            is_in_memory_alone = kept.stored is None and kept.answer.can_change_unseen(content)
            if is_in_memory_alone or kept.answer.ends_with(assignment, content):
                if kept.is_received:
                    self._record_rounding_errors(kept)
                self._drop(kept.answer.task)
        found = self._answers.get(content.task)
        if found is None:
            return None
        if found.is_received:
            # A server that asks for an answer again has not counted it.
            found.is_received = False
            with self._disk_errors("the record of the receipt cannot be removed"):
                mark_asked_again(answer_directory(self._directory, content.task))
        if found.is_of_earlier_process:
            found.is_of_earlier_process = False
            self._notify(f"{self._directory} has the answer to this assignment: it is sent without training")
        return found.answer

    def keep(self, answer: CachedAnswer) -> CachedAnswer:
        """Write an answer to disk, and return the one to send."""
        uncompressed = answer
        if answer.wire_format is not None:
            feedback = self._stored_feedback(answer.task, answer.wire_format)
            answer = replace(answer, source=Compressor(answer.wire_format, answer.source, feedback))
        kept = self._answers[answer.task] = KeptAnswer(answer)
        try:
            kept.stored = write_answer(self._directory, answer)
        except CorruptUpdate as error:
            if answer.wire_format is None:
                raise
            self._begin_feedback_anew(answer.task, answer.wire_format, error)
            return self.keep(uncompressed)
        except OSError as error:
            self._notify(
                f"{self._directory}: the answer is not on disk ({error.strerror}): it is sent from memory, and lost if "
                "this client ends before it is received; free space there"
            )
        else:
            kept.answer = kept.stored.answer
        return kept.answer

    def mark_received(self, answer: CachedAnswer) -> None:
        """The server has sent a receipt for an answer."""
        kept = self._answers.get(answer.task)
        if kept is None or kept.answer.content != answer.content:
            return
        if kept.stored is not None and kept.stored.feedback_name and not kept.is_received:
            with self._disk_errors("the receipt is not recorded"):
                mark_received(answer_directory(self._directory, answer.task))
        kept.is_received = True

    def forget(self, assignment: TaskAssignment) -> None:
        """Drop the answer to an assignment."""
        for kept in list(self._answers.values()):
            if kept.answer.answers(assignment):
                self._drop(kept.answer.task)

    def clear(self) -> None:
        """Drop all answers and all rounding errors."""
        for task in list(self._answers):
            self._drop(task)
        self._feedback.clear()
        with self._disk_errors("rounding errors cannot be removed"):
            for path in self._directory.glob(FEEDBACK_PATTERN):
                path.unlink()

    def _read(self, directory: Path) -> None:
        """Take over an answer of an earlier process, or remove what is left of one."""
        try:
            stored = read_answer(directory)
        except CorruptUpdate as error:
            self._notify(f"{error}; the answer is dropped, and its task is executed again if the server asks for it")
            stored = None
        if stored is not None:
            self._answers[stored.answer.task] = KeptAnswer(stored.answer, stored, stored.is_received, True)
            return
        with self._disk_errors("the answer cannot be removed"):
            remove_answer(directory)

    def _has_files(self) -> bool:
        return any(any(self._directory.glob(pattern)) for pattern in (ANSWER_PATTERN, FEEDBACK_PATTERN))

    def _drop(self, task: str) -> None:
        del self._answers[task]
        with self._disk_errors("the answer cannot be removed"):
            remove_answer(answer_directory(self._directory, task))

    def _record_rounding_errors(self, kept: KeptAnswer) -> None:
        """Make the rounding errors of a received update those that the task's next update adds."""
        answer, stored = kept.answer, kept.stored
        if stored is not None and stored.feedback_name:
            self._feedback.pop(answer.task, None)
            if answer.wire_format is not None and stored.residuals is not None:
                stored.residuals.renamed(self._directory / stored.feedback_name)
                self._feedback[answer.task] = StoredFeedback(answer.wire_format, stored.residuals)
            with self._disk_errors("rounding errors are not recorded"):
                adopt_residuals(self._directory, answer.task, stored.feedback_name)
        elif answer.wire_format is not None:
            # The update was sent from memory. Its errors are gone, and the earlier ones must not be added twice.
            self._forget_rounding_errors(answer.task, answer.wire_format)

    def _stored_feedback(self, task: str, wire_format: WireFormat) -> StoredFeedback:
        """Return the error feedback of a task. It starts anew for another model."""
        feedback = self._feedback.get(task)
        if feedback is None or feedback.wire_format != wire_format:
            path, pieces = self._directory / feedback_name(task, wire_format), None
            try:
                is_there = os.path.lexists(path)
                pieces = StoredPieces.open(path, residual_layout(wire_format)) if is_there else None
            except CorruptUpdate as error:
                self._begin_feedback_anew(task, wire_format, error)
            feedback = self._feedback[task] = StoredFeedback(wire_format, pieces)
        return feedback

    def _begin_feedback_anew(self, task: str, wire_format: WireFormat, error: CorruptUpdate) -> None:
        """Remove rounding errors that cannot be read back."""
        self._notify(f"{error}; the error feedback of task {task!r} starts anew")
        self._forget_rounding_errors(task, wire_format)

    def _forget_rounding_errors(self, task: str, wire_format: WireFormat) -> None:
        self._feedback[task] = StoredFeedback(wire_format, None)
        with self._disk_errors("rounding errors cannot be removed"):
            (self._directory / feedback_name(task, wire_format)).unlink(missing_ok=True)

    @contextmanager
    def _disk_errors(self, effect: str) -> Iterator[None]:
        """Turn an error of the disk into a notice: no answer depends on what failed."""
        try:
            yield
        except OSError as error:
            self._notify(f"{self._directory}: {effect}: {error.strerror}")
