"""The queue of messages to clients: they are sent in order, and without the lock of the state that queued them."""

import threading
from collections import deque
from collections.abc import Callable


class OutgoingMessages:
    """Messages to all clients, in the order in which they were queued.

    A caller queues messages under its own lock, where their order is decided, and calls `flush` after it has released
    that lock: a slow link must not hold up other events. One thread at a time sends, also the messages of the others.
    So two threads cannot send a client its messages in the wrong order.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._queue: deque[Callable[[], None]] = deque()
        self._is_sending = False

    def append(self, send: Callable[[], None]) -> None:
        """Queue a message: a call that sends it. Never blocks."""
        with self._lock:
            self._queue.append(send)

    def flush(self) -> None:
        """Send all queued messages, unless another thread is sending: that thread sends these too."""
        while True:
            with self._lock:
                if self._is_sending or not self._queue:
                    return
                self._is_sending, send = True, self._queue.popleft()
            try:
                send()
            finally:
                with self._lock:
                    self._is_sending = False
