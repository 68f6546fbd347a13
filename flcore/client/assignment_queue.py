"""The queue between a client's listening thread and its working thread.

Assignments are first in, first out. The working thread takes one at a time. The assignment that it took last is the
*current* one, until it asks for the next.
"""

import threading

from flcore_transport import FromServer, Goodbye, TaskAssignment, TransportError, Welcome, Withdrawal


class AssignmentQueue:
    """Holds the newest welcome and the open assignments.

    A goodbye or an error ends the queue at once. Assignments that are still queued are not handed out.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._welcome: Welcome | None = None
        self._assignments: dict[int, TaskAssignment] = {}
        self._current_id: int | None = None
        self._is_withdrawn = False
        self._end: Goodbye | TransportError | None = None

    @property
    def has_ended(self) -> bool:
        """Whether the queue has ended: the server said goodbye or refused the client, or the session broke."""
        return self._end is not None

    @property
    def is_current_wanted(self) -> bool:
        """Whether the answer to the current assignment is still wanted."""
        return self._end is None and not self._is_withdrawn

    def put(self, message: FromServer | TransportError) -> None:
        """Add a message.

        A welcome clears the queue, because the server sends all open assignments again after it. A welcome of another
        session also withdraws the current assignment, because assignment ids are valid in one session only.

        An assignment that is queued or current is not added twice. One that was finished before is added again: the
        server sends it only if it did not receive the answer.
        """
        with self._changed:
            match message:
                case Welcome():
                    if self._welcome is not None and self._welcome.session_secret != message.session_secret:
                        self._is_withdrawn = True  # no effect if there is no current assignment
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
        """Wait for the next assignment, and make it the current one.

        Returns:
            The newest welcome and the assignment; or the goodbye that ended the queue.

        Raises:
            TransportError: The error that ended the queue.
        """
        with self._changed:
            self._current_id = None
            self._changed.wait_for(lambda: self._end is not None or self._assignments)
            if isinstance(self._end, TransportError):
                raise self._end
            if self._end is not None:
                return self._end
            assert self._welcome is not None  # noqa: S101 - a welcome comes first
            assignment = self._assignments.pop(next(iter(self._assignments)))
            # A new session may have set the mark while there was no current assignment: it is not about this one.
            self._current_id, self._is_withdrawn = assignment.assignment_id, False
            return self._welcome, assignment
