"""Where a client's listening thread leaves what the server said, and its working thread picks up one order at a time.

Orders are first in, first out. The order that was picked up last is the one *at work*, until the next is picked up.
"""

import threading

from flcore_transport import FromServer, Goodbye, TaskAssignment, TransportError, Welcome, Withdrawal


class AssignmentQueue:
    """Holds the newest welcome and the open orders. A goodbye or an error ends it, and comes before any order."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._welcome: Welcome | None = None
        self._assignments: dict[int, TaskAssignment] = {}
        self._current_id: int | None = None
        self._is_withdrawn = False
        self._end: Goodbye | TransportError | None = None

    @property
    def has_ended(self) -> bool:
        """Whether the server has said goodbye or no."""
        return self._end is not None

    @property
    def is_current_wanted(self) -> bool:
        """Whether the answer to the order at work is still wanted."""
        return self._end is None and not self._is_withdrawn

    def put(self, message: FromServer | TransportError) -> None:
        """Leave a message.

        A welcome clears the queue, as the server sends all open orders again; one of another session withdraws the
        order at work besides, because numbers of orders mean nothing beyond their session. An order that waits or is at
        work is not taken twice; one that was done before is, as its answer may have been lost.
        """
        with self._changed:
            match message:
                case Welcome():
                    if self._welcome is not None and self._welcome.session != message.session:
                        self._is_withdrawn = True  # what is at work, if anything is
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
        """Wait for the next order, or for the end: return the goodbye, or raise the error."""
        with self._changed:
            self._current_id = None
            self._changed.wait_for(lambda: self._end is not None or self._assignments)
            if isinstance(self._end, TransportError):
                raise self._end
            if self._end is not None:
                return self._end
            assert self._welcome is not None  # noqa: S101 - a welcome comes first
            assignment = self._assignments.pop(next(iter(self._assignments)))
            # Forget whatever came while nothing was at work.
            self._current_id, self._is_withdrawn = assignment.assignment_id, False
            return self._welcome, assignment
