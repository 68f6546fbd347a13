"""How many pieces may be under way at once, shared out among all transfers of a server.

A transfer holds a window of a few pieces from its first piece to its last, so the memory of all transfers has a bound
whatever the number of clients; who finds none left waits in line. All methods run on one event loop.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

WINDOW_PIECES = 4
"""How many pieces a client may send ahead of what the server has taken, where there is room for so many."""

LEAST_PIECES = 4
"""The fewest pieces that a server shares out."""


Superseded = asyncio.Future[None]
"""Done when a newer call has taken a call's place."""


class NewerCall(Exception):
    """A newer call has taken this one's place."""


async def done(future: "asyncio.Future[Any]", superseded: Superseded, timeout_s: float | None = None) -> bool:
    """Wait for a future, and say whether it is done in time; raise `NewerCall` if its call is superseded before.

    The future goes on: what gRPC has begun must not be cancelled in the middle.
    """
    await asyncio.wait({future, superseded}, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
    if not future.done() and superseded.done():
        raise NewerCall
    return future.done()


@dataclass(frozen=True)
class Window:
    """A transfer's share: so many pieces may be under way. One more is what its socket's buffers take."""

    pieces: int

    @property
    def cost(self) -> int:
        """What it takes of all pieces that are shared out."""
        return self.pieces + 1


class Windows:
    """Shares out `pieces` pieces. A transfer gets a window of up to 4, less where little is left, and never of none."""

    def __init__(self, pieces: int) -> None:
        if pieces < LEAST_PIECES:
            raise ValueError(f"a server shares out {LEAST_PIECES} pieces or more, not {pieces}")
        self._free = pieces
        self._waiting: deque[asyncio.Future[Window]] = deque()

    @property
    def is_contended(self) -> bool:
        """Whether a transfer waits for a window."""
        return any(not waiter.done() for waiter in self._waiting)

    @asynccontextmanager
    async def window(self, superseded: Superseded | None = None) -> AsyncIterator[Window]:
        """Hold a window while the block lasts; waits in line for it, unless its call is superseded (`NewerCall`)."""
        turn: asyncio.Future[Window] = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        self._share_out()
        try:
            await done(turn, superseded or asyncio.get_running_loop().create_future())
            yield turn.result()
        finally:
            if turn.done() and not turn.cancelled():
                self._free += turn.result().cost
            turn.cancel()  # if it has not come
            self._share_out()

    def _share_out(self) -> None:
        while self._waiting and self._free >= 2:
            turn = self._waiting.popleft()
            if turn.done():  # cancelled while it waited
                continue
            window = Window(max(1, min(WINDOW_PIECES, self._free // 4)))
            self._free -= window.cost
            turn.set_result(window)
