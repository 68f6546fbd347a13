"""Where a client's listening thread leaves what the server said, and its working thread picks up the newest of it."""

import threading

from flcore_transport import FromServer, Goodbye, Order, TransportError, Welcome


class Mailbox:
    """Holds the newest welcome and the newest order. A goodbye or an error ends it, and comes before any order."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._welcome: Welcome | None = None
        self._order: Order | None = None
        self._last_number = 0
        self._end: Goodbye | TransportError | None = None

    @property
    def is_over(self) -> bool:
        """Whether the server has said goodbye or no."""
        return self._end is not None

    def put(self, message: FromServer | TransportError) -> None:
        """Leave a message. An order that was picked up before is not taken again."""
        with self._changed:
            match message:
                case Welcome():
                    if self._welcome is None or self._welcome.session != message.session:
                        self._welcome, self._order, self._last_number = message, None, 0
                case Order():
                    if message.number > self._last_number:
                        self._order = message
                case _:
                    self._end = self._end or message
            self._changed.notify_all()

    def take(self) -> tuple[Welcome, Order] | Goodbye:
        """Wait for the next order, or for the end: return the goodbye, or raise the error."""
        with self._changed:
            self._changed.wait_for(lambda: self._end is not None or self._order is not None)
            if isinstance(self._end, TransportError):
                raise self._end
            if self._end is not None:
                return self._end
            assert self._welcome is not None and self._order is not None  # noqa: S101, PT018 - a welcome comes first
            order, self._order = self._order, None
            self._last_number = order.number
            return self._welcome, order
