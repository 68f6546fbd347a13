"""`Windows` for threads: a call waits here for its turn, and learns that it has to end when it next comes by.

There is no clock of its own: only calls that wait in line need to know the time, so the first of them keeps it.
"""

import math
import threading
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager

from flcore_transport.errors import ConnectionLost
from flcore_transport.windows import Action, Step, Transfer, Windows


class Turns:
    """The transfers of one server. Any thread may call."""

    def __init__(self, windows: Windows) -> None:
        self.windows = windows
        self.lock = threading.Lock()
        self.movers: dict[Transfer, Mover] = {}
        self.waiting: dict[Mover, None] = {}
        self._look_at = math.inf

    @contextmanager
    def transfer(self, client: str, kind: str, order: int) -> "Iterator[Mover]":
        """Be a transfer while the block lasts."""
        with self.lock:
            transfer, actions = self.windows.begin(client, kind, order)
            mover = self.movers[transfer] = Mover(self, transfer)
            self.do(actions)
        try:
            yield mover
        finally:
            with self.lock:
                del self.movers[transfer]
                self.do(self.windows.end(transfer, is_done=mover.is_done))

    def cut(self, client: str, order: int) -> None:
        """End a client's transfers of an order."""
        with self.lock:
            self.do(self.windows.cut(client, order))

    def do(self, actions: list[Action]) -> None:
        """Wake the transfers for which something has changed. The lock is held, as in all methods below."""
        told = deque(actions)
        while told:
            transfer, step = told.popleft()
            mover = self.movers.get(transfer)
            if mover is not None:
                mover.changed.notify()
                if step is Step.END and mover.is_standing:  # in code of its client's, with no piece under way
                    told.extend(self.windows.end(transfer))
        self.keep_time()

    def keep_time(self) -> None:
        """Have the first in line look at the time when something is due."""
        if self.windows.due_at < self._look_at:
            self._look_at = self.windows.due_at
            self.wake_first()

    def wake_first(self) -> None:
        """Wake the first that waits."""
        if self.waiting and self._look_at < math.inf:
            next(iter(self.waiting)).changed.notify()

    def wait(self, changed: threading.Condition) -> None:
        """Wait until something has changed, and let time pass."""
        changed.wait(None if self._look_at == math.inf else max(0.0, self._look_at - time.monotonic()))
        now = time.monotonic()
        if now >= self._look_at:
            self._look_at = math.inf
            self.do(self.windows.tick(now))


class Mover:
    """One call that moves pieces. Its methods raise a `TransportError` as soon as it has to end."""

    def __init__(self, turns: Turns, transfer: Transfer) -> None:
        self.is_done = self.is_standing = self._is_lost = False
        self.changed = threading.Condition(turns.lock)
        self._turns, self._transfer = turns, transfer

    @property
    def has_turn(self) -> bool:
        """Whether it has a window."""
        return bool(self._transfer.window)

    def turn(self) -> None:
        """Wait in line for a window, unless it has one."""
        with self._turns.lock:
            self._turns.do(self._turns.windows.ask(self._transfer))
            self._turns.waiting[self] = None
            try:
                while not self._transfer.window and not self._is_over:
                    self._turns.wait(self.changed)
            finally:
                del self._turns.waiting[self]
                self._turns.wake_first()
        self.go_on()

    def wait(self, future: "Future[None]") -> None:
        """Wait for something of the server's own."""

        def tell(_: "Future[None]") -> None:
            with self._turns.lock:
                self.changed.notify()

        future.add_done_callback(tell)
        with self._turns.lock:
            while not future.done() and not self._is_over:
                self.changed.wait()
        self.go_on()
        future.result()

    @contextmanager
    def standing(self) -> Iterator[None]:
        """What happens in the block is the client's: it makes a piece, or takes one."""
        with self._turns.lock:
            self.go_on()  # a call that was told to end before has a window still, and must not stand with it
            self.is_standing = True
            self._turns.windows.stand(self._transfer, time.monotonic())
            self._turns.keep_time()
        try:
            yield
        finally:
            with self._turns.lock:
                self.is_standing = False
                self._turns.windows.move(self._transfer)

    def lose(self) -> None:
        """The connection is closed."""
        with self._turns.lock:
            self._is_lost = True
            self.changed.notify()

    @property
    def _is_over(self) -> bool:
        return self._is_lost or self._transfer.ending is not None

    def go_on(self) -> None:
        """Raise what the call has to end with, if it has to end."""
        if self._is_lost:
            raise ConnectionLost("the connection is closed")
        if self._transfer.ending is not None:
            raise self._transfer.ending.error()
