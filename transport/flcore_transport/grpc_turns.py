"""`Windows` on the event loop: a call waits here for its turn and for its client, and learns that it has to end.

A call whose client reads nothing cannot be ended by gRPC: the status waits behind the piece that is on its way. After a
second its connection is shut down instead. If that fails a few times, the call is left to gRPC and its window is free.
"""

import asyncio
import logging
import math
import os
import socket
import stat
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import grpc
import grpc.aio

from flcore_transport.endpoint import refusal
from flcore_transport.errors import Refused
from flcore_transport.grpc_work import Context, Ends, seen
from flcore_transport.windows import Action, Ended, Ending, Transfer, Windows

logger = logging.getLogger(__name__)

HANG_UP_S = 1.0
"""For how many seconds a client may leave the end of its call unread."""

HANG_UPS = 5
"""How often a connection is shut down at most, `HANG_UP_S` apart, until its call ends."""

OPEN_FILES = "/dev/fd"


class Turns:
    """The transfers of one server. All methods run on its event loop."""

    def __init__(self, windows: Windows, ends: Ends) -> None:
        self._windows, self._ends = windows, ends
        self._movers: dict[Transfer, Mover] = {}
        self._timer: asyncio.TimerHandle | None = None

    @asynccontextmanager
    async def transfer(self, client: str, kind: str, order: int, context: Context) -> "AsyncIterator[Mover]":
        """Be a transfer while the block lasts; where the transfer has to end, end its call."""
        transfer, actions = self._windows.begin(client, kind, order)
        mover = self._movers[transfer] = Mover(self, self._windows, transfer)
        self.do(actions)
        try:
            yield mover
        except Ended as ended:
            await self._end_call(context, ended.ending)
        finally:
            del self._movers[transfer]
            self.do(self._windows.end(transfer, is_done=mover.is_done))

    def cut(self, client: str, order: int) -> None:
        """End a client's transfers of an order."""
        self.do(self._windows.cut(client, order))

    def do(self, actions: list[Action]) -> None:
        """Wake the transfers for which something has changed, and set the clock for the next change."""
        for transfer, _ in actions:
            if transfer in self._movers:
                self._movers[transfer].wake()
        self.keep_time()

    def keep_time(self) -> None:
        """Have `Windows` told the time when something is due."""
        due_at = self._windows.due_at
        if self._timer is not None and self._timer.when() > due_at:
            self._timer.cancel()
            self._timer = None
        if self._timer is None and due_at < math.inf:
            self._timer = asyncio.get_running_loop().call_at(due_at, self._tick)

    async def _end_call(self, context: Context, ending: Ending) -> None:
        """Tell the client why its call ends; hang up if it does not listen."""
        error = ending.error()
        aborting = asyncio.ensure_future(
            self._ends.refuse(context, refusal(error))
            if isinstance(error, Refused)
            else self._ends.abort(context, grpc.StatusCode.UNAVAILABLE, str(error))
        )
        aborting.add_done_callback(seen)
        await asyncio.wait({aborting}, timeout=HANG_UP_S)
        for _ in range(HANG_UPS):
            if aborting.done():
                break
            logger.info("%s does not read: its connection is shut down", context.peer())
            # Not on the event loop: it looks at every descriptor of the process.
            hanging_up = asyncio.ensure_future(asyncio.to_thread(hang_up, context.peer()))
            hanging_up.add_done_callback(seen)
            await asyncio.wait({hanging_up})
            await asyncio.wait({aborting}, timeout=HANG_UP_S)
        if not aborting.done():
            logger.warning("%s does not read, and its connection cannot be shut down", context.peer())
            raise asyncio.CancelledError  # as if gRPC had ended the call: nothing more is said in it
        await aborting

    def _tick(self) -> None:
        self._timer = None
        self.do(self._windows.tick(asyncio.get_running_loop().time()))


class Mover:
    """One call that moves pieces. Its methods wait, and raise `Ended` as soon as it has to end."""

    def __init__(self, turns: Turns, windows: Windows, transfer: Transfer) -> None:
        self.is_done = False
        self._turns, self._windows, self._transfer = turns, windows, transfer
        self._loop = asyncio.get_running_loop()
        self._woken: asyncio.Future[None] = self._loop.create_future()

    @property
    def window(self) -> int:
        """How many pieces may be under way now."""
        return self._transfer.window

    def wake(self) -> None:
        """Have what waits look again."""
        if not self._woken.done():
            self._woken.set_result(None)

    async def turn(self) -> None:
        """Wait in line for a window, unless it has one."""
        if not self._transfer.window:
            self._turns.do(self._windows.ask(self._transfer))
        while not self._transfer.window:
            await self._change()
        self._go_on()

    async def wait(self, future: "asyncio.Future[Any]") -> None:
        """Wait for something of the server's own, which goes on even if this call ends."""
        self._go_on()
        while not future.done():
            await self._change(future)

    async def stand(self, future: "asyncio.Future[Any]") -> None:
        """Wait for the client: for its next piece, or until it takes one."""
        if not future.done():
            self._windows.stand(self._transfer, self._loop.time())
            self._turns.keep_time()
        await self.wait(future)
        self._windows.move(self._transfer)

    async def _change(self, *future: "asyncio.Future[Any]") -> None:
        """Wait until a future is done or `Windows` has said something. What gRPC has begun is never cancelled."""
        await asyncio.wait({self._woken, *future}, return_when=asyncio.FIRST_COMPLETED)
        if self._woken.done():
            self._woken = self._loop.create_future()
        self._go_on()

    def _go_on(self) -> None:
        if self._transfer.ending is not None:
            raise Ended(self._transfer.ending)


def hang_up(peer: str) -> None:
    """Shut down this process's connection from `peer`, as gRPC names it (`ipv4:127.0.0.1:8470`).

    gRPC offers no way to end one. It sees the end of the connection, and ends all calls on it.
    """
    host, _, port = unquote(peer).partition(":")[2].rpartition(":")
    for file in Path(OPEN_FILES).iterdir():
        with _socket_of(int(file.name)) as found:
            if found is None or found.family not in (socket.AF_INET, socket.AF_INET6):
                continue
            with suppress(OSError):  # one that listens, or is closed by now
                theirs = found.getpeername()
                if (theirs[0].removeprefix("::ffff:"), theirs[1]) == (host.strip("[]"), int(port)):
                    found.shutdown(socket.SHUT_RDWR)


@contextmanager
def _socket_of(descriptor: int) -> "Iterator[socket.socket | None]":
    """The socket that a descriptor stands for while the block lasts, or None. The descriptor itself stays as it is."""
    copy = -1
    try:
        if stat.S_ISSOCK(os.fstat(descriptor).st_mode):
            copy = os.dup(descriptor)  # gRPC may close its own meanwhile, and another connection get the number
        found = socket.socket(fileno=copy) if copy >= 0 else None
    except OSError:  # it is closed by now, or there is none left for the copy
        found = None
    try:
        yield found
    finally:
        if found is not None:
            found.close()
        elif copy >= 0:
            os.close(copy)
