"""Bounds on the page's connections: how many there are, how slowly a request may come, how slowly a reply may go."""

import asyncio
import socket
from typing import Any
from weakref import WeakSet

from uvicorn.protocols.http.h11_impl import H11Protocol

MAX_CONNECTIONS = 64
"""Further connections are closed as they come, before TLS: the server's descriptors are for the run."""

REQUEST_TIMEOUT_S = 10.0
"""A connection that has sent no whole head of a request for this time is closed."""

STALL_TIMEOUT_S = 30.0
"""A connection whose peer takes nothing for this time is cut."""


class BoundedListener(socket.socket):
    """A listening socket that has at most `MAX_CONNECTIONS` open connections."""

    def __init__(self, family: int) -> None:
        super().__init__(family, socket.SOCK_STREAM)
        self._accepted: WeakSet[socket.socket] = WeakSet()

    def accept(self) -> tuple[socket.socket, Any]:
        """Accept a connection. Raises `ConnectionAbortedError` if there are too many: the event loop goes on."""
        connection, address = super().accept()
        if sum(each.fileno() >= 0 for each in self._accepted) >= MAX_CONNECTIONS:
            connection.close()
            raise ConnectionAbortedError
        self._accepted.add(connection)
        return connection, address


class BoundedConnection(H11Protocol):
    """An HTTP/1.1 connection within the bounds of time. The event loop calls it."""

    _request_timer: asyncio.TimerHandle | None = None
    _stall_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A peer has connected."""
        super().connection_made(transport)
        self._expect_request()

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection has ended."""
        for timer in (self._request_timer, self._stall_timer):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """The peer takes less than there is."""
        super().pause_writing()
        self._stall_timer = self.loop.call_later(STALL_TIMEOUT_S, self.transport.abort)

    def resume_writing(self) -> None:
        """The peer has taken what there was."""
        if self._stall_timer is not None:
            self._stall_timer.cancel()
        super().resume_writing()

    def on_response_complete(self) -> None:
        """A reply is out: the next request may come."""
        super().on_response_complete()
        if self._request_timer is not None:
            self._request_timer.cancel()
        self._expect_request()

    def _expect_request(self) -> None:
        self._request_timer = self.loop.call_later(REQUEST_TIMEOUT_S, self._end_if_silent)

    def _end_if_silent(self) -> None:
        cycle: Any = self.cycle
        if cycle is None or cycle.response_complete:
            self.transport.abort()
