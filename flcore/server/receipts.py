"""Receipts that may be lost: the last one of each client, which outlives its attempt."""

import threading
from collections.abc import Mapping
from concurrent.futures import Future

from flcore_transport import Receipt, Refused


class LastReceipts:
    """The last committed answer of each client.

    An attempt closes with its last answer, and the next one may open at once. A client whose receipt was lost sends its
    answer again, and finds that attempt closed. It executes assignments one by one, so only its last answer can be
    without a receipt. Thread-safe.

    Args:
        earlier: The receipts of an earlier process of the server: the id and token of the assignment, and the key of
            the answer, by client.
    """

    def __init__(self, earlier: Mapping[str, tuple[int, bytes, str]]) -> None:
        self._lock = threading.Lock()
        self._last = dict(earlier)

    def record(self, client: str, assignment_id: int, token: bytes, key: str) -> None:
        """An answer to the assignment with this token is committed."""
        with self._lock:
            if assignment_id >= self._last.get(client, (0, b"", ""))[0]:
                self._last[client] = (assignment_id, token, key)

    def has(self, client: str, assignment_id: int, token: bytes, key: str) -> bool:
        """Return whether the client's last committed answer is this one."""
        with self._lock:
            return self._last.get(client) == (assignment_id, token, key)


class AcknowledgedUpload:
    """A call that brings an answer which is committed already: the transport's `IncomingUpload`. It takes no piece."""

    received = expected = 0

    def __init__(self, assignment_id: int) -> None:
        self._assignment_id = assignment_id

    def begin(self) -> "Future[None]":
        """Return a future that is done: there is nothing to receive."""
        done: Future[None] = Future()
        done.set_result(None)
        return done

    def accept(self, _: bytes) -> None:
        """Refuse a piece."""
        raise Refused("malformed", "a piece came for an answer that is in already")

    def commit(self) -> Receipt:
        """Return the receipt again."""
        return Receipt(self._assignment_id)

    def end(self) -> None:
        """The call has ended."""
