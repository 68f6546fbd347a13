"""The queue between a client's listening thread and its working thread, which takes one assignment at a time.

Assignments are first in, first out. The one that was taken last is the *current* one, until the next is taken.
"""

import threading

from flcore_transport import FromServer, Goodbye, TaskAssignment, TransportError, Welcome, Withdrawal


class AssignmentQueue:
    """Holds the newest welcome and the open assignments. A goodbye or an error ends it, before any assignment."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._welcome: Welcome | None = None
        self._assignments: dict[int, TaskAssignment] = {}
        self._current_id: int | None = None
        self._is_withdrawn = False
        self._end: Goodbye | TransportError | None = None

    @property
    def has_ended(self) -> bool:
        """Whether the server has said goodbye or refused the client."""
        return self._end is not None

    @property
    def is_current_wanted(self) -> bool:
        """Whether the answer to the current assignment is still wanted."""
        return self._end is None and not self._is_withdrawn

    def put(self, message: FromServer | TransportError) -> None:
        """Add a message.

        A welcome clears the queue, as the server sends all open assignments again. A welcome of another session also
        withdraws the current assignment, because assignment ids are valid in one session only. An assignment that is
        queued or current is not added twice. One that was done before is, as its answer may have been lost.
        """
        with self._changed:
            match message:
                case Welcome():
                    if self._welcome is not None and self._welcome.session_secret != message.session_secret:
                        self._is_withdrawn = True  # the current assignment, if any
                    self._welcome = message
                    self._assignments.clear()
                case TaskAssignment():
                    if self._is_withdrawn or message.assignment_id != self._current_id:
                        self._assignments.setdefault(message.assignment_id, message)
                case Withdrawal():
                    self._assignments.pop(message.assignment_id, None)
                    self._is_withdrawn = self._is_withdrawn or message.assignment_id == self._current_id
                case _:
                    self._end = self._end or message
            self._changed.notify_all()

    def next_assignment(self) -> tuple[Welcome, TaskAssignment] | Goodbye:
        """Wait for the next assignment, or for the end: return the goodbye, or raise the error."""
        with self._changed:
            self._current_id = None
            self._changed.wait_for(lambda: self._end is not None or self._assignments)
            if isinstance(self._end, TransportError):
                raise self._end
            if self._end is not None:
                return self._end
            assert self._welcome is not None  # noqa: S101 - a welcome comes first
            assignment = self._assignments.pop(next(iter(self._assignments)))
            # Discard a withdrawal that arrived while there was no current assignment.
            self._current_id, self._is_withdrawn = assignment.assignment_id, False
            return self._welcome, assignment
