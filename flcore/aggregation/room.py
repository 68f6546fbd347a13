"""Room in memory that staged updates share: claimed for a whole update at a time, taken and given back by the chunk."""

import math
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field


@dataclass
class _Line:
    """Bytes that are taken, of so many that there are, and those who wait for some in turn."""

    limit: float
    taken: int = 0
    waiting: deque[tuple[int, "Future[bool]"]] = field(default_factory=deque)

    def grant(self) -> "list[Future[bool]]":
        """Take what those at the head of the line wait for, as far as there is some; return their futures."""
        granted: list[Future[bool]] = []
        while self.waiting:
            nbytes, future = self.waiting[0]
            if not future.cancelled():
                if self.taken + nbytes > self.limit:
                    break
                if future.set_running_or_notify_cancel():
                    self.taken += nbytes
                    granted.append(future)
            self.waiting.popleft()
        return granted


class Room:
    """At most `limit_bytes` of chunks in memory (None: no bound). Any thread may call its methods; none of them waits.

    An update claims room for all of it before its first chunk comes, so that half-received updates never wait for each
    other. A claim is released when its chunks begin to be let go one after the other: the next update may come then,
    and its chunks enter, in turn, as others leave.
    """

    def __init__(self, limit_bytes: int | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._limit, self._clock = math.inf if limit_bytes is None else limit_bytes, clock
        self.released_at = -math.inf
        """When room was given back the last time: those who wait see by it that waiting makes sense."""
        self._lock = threading.Lock()
        self._claims, self._chunks = _Line(self._limit), _Line(self._limit)

    def claim(self, nbytes: int, *, may_wait: bool) -> "Future[bool]":
        """Ask for room; the result is whether there is. With `may_wait` it is given as others release theirs, in turn.

        A future that is cancelled gets none.
        """
        future: Future[bool] = Future()
        with self._lock:
            claims = self._claims
            fits_now = claims.taken + nbytes <= self._limit and not claims.waiting
            is_waiting = nbytes <= self._limit and (may_wait or fits_now)
        if not is_waiting:
            future.set_result(False)
            return future
        return self._stand(claims, nbytes, future)

    def release(self, nbytes: int) -> None:
        """Give a claim back."""
        self._give_back(self._claims, nbytes)

    def enter(self, nbytes: int) -> "Future[bool]":
        """A chunk comes into memory; the future is done once there is room for it. One that is cancelled gets none."""
        return self._stand(self._chunks, nbytes, Future())

    def leave(self, nbytes: int) -> None:
        """Chunks have left memory."""
        self._give_back(self._chunks, nbytes)

    def _stand(self, line: _Line, nbytes: int, future: "Future[bool]") -> "Future[bool]":
        with self._lock:
            line.waiting.append((nbytes, future))
            granted = line.grant()
        _tell(granted)
        return future

    def _give_back(self, line: _Line, nbytes: int) -> None:
        with self._lock:
            line.taken -= nbytes
            self.released_at = self._clock()
            granted = line.grant()
        _tell(granted)


def _tell(granted: "list[Future[bool]]") -> None:
    """Say yes, without a lock: what waits for it may come back here."""
    for future in granted:
        future.set_result(True)
