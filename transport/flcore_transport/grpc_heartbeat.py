"""Heartbeats of a session's stream, which may carry no other message for hours.

A keepalive shows that a connection is alive, and not that a stream on it is. In plaintext a bit that is flipped in a
length makes gRPC take all later messages for the rest of one, and a bit flipped in a stream's number loses a message.
The client sees both by the heartbeats, and joins again: the server then sends all open assignments once more.
"""

import asyncio
import threading
from typing import Any, TypeVar

from flcore_transport.errors import ConnectionLost
from flcore_transport.messages import Heartbeat, SessionMessage

T = TypeVar("T")

HEARTBEAT_INTERVAL_S = 20.0
"""Seconds without a message after which a server sends a heartbeat."""

SILENCE_TIMEOUT_S = 60.0
"""Seconds without a message after which a client joins again."""


async def next_message(queue: "asyncio.Queue[T]", sent: int) -> "T | Heartbeat":
    """Return the next message of a stream that has carried `sent` messages; a heartbeat if none comes in time."""
    try:
        return await asyncio.wait_for(queue.get(), HEARTBEAT_INTERVAL_S)
    except TimeoutError:
        return Heartbeat(sent)


class SessionWatch:
    """The client's view of one session's stream. It cancels the call that is silent for too long, on its own thread."""

    def __init__(self, call: Any) -> None:
        self._call = call
        self._received = 0
        self._has_ended = False
        self._changed = threading.Condition()  # notified for each message, and at the end
        threading.Thread(target=self._watch, name="session-watch", daemon=True).start()

    def received(self, message: SessionMessage) -> None:
        """Count a message. Raises `ConnectionLost` for a heartbeat that counts more messages than have come."""
        with self._changed:
            count, self._received = self._received, self._received + 1
            self._changed.notify()
        if isinstance(message, Heartbeat) and message.sent != count:
            raise ConnectionLost(f"the session has lost messages: the server sent {message.sent}, {count} came")

    def end(self) -> None:
        """The stream has ended."""
        with self._changed:
            self._has_ended = True
            self._changed.notify()

    def _watch(self) -> None:
        with self._changed:
            is_silent = False
            while not (self._has_ended or is_silent):
                is_silent = not self._changed.wait(SILENCE_TIMEOUT_S)
        if is_silent:
            self._call.cancel()
