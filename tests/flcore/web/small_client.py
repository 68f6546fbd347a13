"""A browser of few lines, for tests of the page's server: requests as they are, and the stream of states."""

import json
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPMessage, HTTPResponse
from typing import Any
from urllib.parse import urlsplit

TIMEOUT_S = 60.0


@dataclass(frozen=True)
class Reply:
    status: int
    headers: HTTPMessage
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


@dataclass(frozen=True)
class PageClient:
    """Sends requests to the page at an address."""

    url: str

    @property
    def place(self) -> tuple[str, int]:
        split = urlsplit(self.url)
        assert split.port is not None
        return "127.0.0.1", split.port

    def get(self, path: str, method: str = "GET", **headers: str) -> Reply:
        connection = HTTPConnection(*self.place, timeout=TIMEOUT_S)
        try:
            connection.request(method, path, headers={name.replace("_", "-"): each for name, each in headers.items()})
            reply = connection.getresponse()
            return Reply(reply.status, reply.headers, reply.read())
        finally:
            connection.close()

    def raw(self, request: bytes) -> bytes:
        """Send bytes as they are, and return all that comes until the server closes."""
        with socket.create_connection(self.place, TIMEOUT_S) as sock:
            sock.sendall(request)
            found = b""
            while part := sock.recv(65_536):
                found += part
            return found

    @contextmanager
    def states(self, job: str = "") -> "Iterator[Iterator[dict[str, Any]]]":
        """Open the stream of states."""
        connection = HTTPConnection(*self.place, timeout=TIMEOUT_S)
        try:
            connection.request("GET", f"/api/events?job={job}")
            reply = connection.getresponse()
            assert reply.status == 200, reply.status
            assert reply.headers["Content-Type"].startswith("text/event-stream")
            yield messages(reply)
        finally:
            connection.close()


def messages(reply: HTTPResponse) -> Iterator[dict[str, Any]]:
    """Yield the states of a stream, until it ends."""
    for line in reply:
        if line.startswith(b"data: "):
            yield json.loads(line[6:])


def until(states: Iterator[dict[str, Any]], is_so: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    """Return the first state that is as expected."""
    return next(state for state in states if is_so(state))
