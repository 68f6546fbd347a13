"""Room in memory that staged updates share: claimed for a whole update at a time, taken and given back by the chunk."""

import math
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future


class Room:
    """At most `limit_bytes` of chunks in memory (None: no bound). Methods may be called from any thread.

    An update claims room for all of it before its first chunk comes, so that half-received updates never wait for each
    other. A claim is released when its chunks begin to be let go one after the other: the next update may come then,
    and its chunks wait, if they must, until as many have left.
    """

    def __init__(self, limit_bytes: int | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._limit, self._clock = math.inf if limit_bytes is None else limit_bytes, clock
        self.released_at = -math.inf
        """When room was given back the last time: those who wait see by it that waiting makes sense."""
        self._changed = threading.Condition()
        self._claimed = self._held = 0
        self._waiting: deque[tuple[int, Future[bool]]] = deque()

    def claim(self, nbytes: int, *, may_wait: bool) -> "Future[bool]":
        """Ask for room; the result is whether there is. With `may_wait` it is given as others release theirs, in turn.

        Whoever cancels the future gets none.
        """
        future: Future[bool] = Future()
        with self._changed:
            fits_now = self._claimed + nbytes <= self._limit and not self._waiting
            is_waiting = nbytes <= self._limit and (may_wait or fits_now)
            if is_waiting:
                self._waiting.append((nbytes, future))
        if is_waiting:
            self._share_out()
        else:
            future.set_result(False)
        return future

    def release(self, nbytes: int) -> None:
        """Give a claim back."""
        with self._changed:
            self._claimed -= nbytes
            self.released_at = self._clock()
        self._share_out()

    def enter(self, nbytes: int) -> None:
        """A chunk comes into memory; waits until those that are being let go have left enough room."""
        with self._changed:
            self._changed.wait_for(lambda: self._held + nbytes <= self._limit)
            self._held += nbytes

    def leave(self, nbytes: int) -> None:
        """Chunks have left memory."""
        with self._changed:
            self._held -= nbytes
            self.released_at = self._clock()
            self._changed.notify_all()

    def _share_out(self) -> None:
        granted: list[Future[bool]] = []
        with self._changed:
            while self._waiting:
                nbytes, future = self._waiting[0]
                if not future.cancelled():
                    if self._claimed + nbytes > self._limit:
                        break
                    if future.set_running_or_notify_cancel():
                        self._claimed += nbytes
                        granted.append(future)
                self._waiting.popleft()
        for future in granted:  # outside of the lock: what waits for it may come back here
            future.set_result(True)
