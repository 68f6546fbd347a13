"""Replies that take a while: the stream of states, and a file that may grow meanwhile."""

import os
from collections.abc import AsyncGenerator, Callable
from typing import Any, BinaryIO, Protocol

from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

CHUNK_BYTES = 64 << 10


class InThread(Protocol):
    """Runs a function in a thread."""

    async def __call__(self, make: Callable[[], Any], /) -> Any:
        """Return the function's result."""


class EventStream(StreamingResponse):
    """A stream of server-sent events.

    Args:
        messages: The messages.
        ended: Called when the stream has ended, in whichever way.
    """

    def __init__(self, messages: AsyncGenerator[bytes], ended: Callable[[], None]) -> None:
        super().__init__(messages, media_type="text/event-stream")
        self._messages, self._ended = messages, ended

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the messages until they end, or the reader goes."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._ended()
            await self._messages.aclose()


class Download(StreamingResponse):
    """A file to be kept, as long as it is at the start: a server appends to its history and its audit log.

    Args:
        file: The open file, which the reply closes.
        media_type: Its type.
        name: The name under which browsers keep it. ASCII without quotes.
        in_thread: Reads the file.
    """

    def __init__(self, file: BinaryIO, media_type: str, name: str, in_thread: InThread) -> None:
        self._file, self._in_thread = file, in_thread
        self._left = os.fstat(file.fileno()).st_size
        headers = {"Content-Length": str(self._left), "Content-Disposition": f'attachment; filename="{name}"'}
        super().__init__(self._chunks(), headers=headers, media_type=media_type)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the file; to `HEAD` the headers alone."""
        if scope["method"] == "HEAD":
            self._left = 0
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._file.close()

    async def _chunks(self) -> AsyncGenerator[bytes]:
        while self._left:
            chunk: bytes = await self._in_thread(lambda: self._file.read(min(CHUNK_BYTES, self._left)))
            if not chunk:  # somebody has cut the file: the connection ends before the announced length
                return
            self._left -= len(chunk)
            yield chunk
