"""Room in memory that staged updates share: claimed for a whole update at a time, taken and given back by the chunk."""

import math
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field

Asked = Future[bool]


@dataclass
class _Line:
    """Bytes that are taken, of so many that there are, and those that wait for some in turn."""

    limit: float
    taken: int = 0
    waiting: deque[tuple[int, Asked]] = field(default_factory=deque)

    def fits(self, nbytes: int) -> bool:
        """Whether so many bytes could be had at once."""
        return self.taken + nbytes <= self.limit and not self.waiting

    def grant(self) -> list[Asked]:
        """Take what those at the head of the line wait for, as far as there is some; return their futures."""
        granted: list[Asked] = []
        while self.waiting:
            nbytes, asked = self.waiting[0]
            if not asked.cancelled():
                if self.taken + nbytes > self.limit:
                    break
                if asked.set_running_or_notify_cancel():
                    self.taken += nbytes
                    granted.append(asked)
            self.waiting.popleft()
        return granted


class Room:
    """At most `limit_bytes` of chunks in memory (None: no bound). Any thread may call its methods; none of them waits.

    An update claims room for all of it before its first chunk comes, so that half-received updates never wait for each
    other. A claim is released when its chunks begin to be let go one after the other: the next update may come then,
    and its chunks enter, in turn, as others leave.
    """

    def __init__(self, limit_bytes: int | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        limit, self._clock = math.inf if limit_bytes is None else limit_bytes, clock
        self.released_at = -math.inf
        """When room was given back the last time: those who wait see by it that waiting makes sense."""
        self._lock = threading.Lock()
        self._claims, self._chunks = _Line(limit), _Line(limit)

    def claim(self, nbytes: int, *, may_wait: bool) -> Asked:
        """Ask for room; the result is whether there is. With `may_wait` it is given as others release theirs, in turn.

        A future that is cancelled gets none.
        """
        with self._lock:
            if nbytes <= self._claims.limit and (may_wait or self._claims.fits(nbytes)):
                asked, granted = self._stand(self._claims, nbytes)
            else:
                asked, granted = Asked(), []
                asked.set_result(False)
        return self._told(self._claims, asked, granted)

    def release(self, nbytes: int) -> None:
        """Give a claim back."""
        self._give_back(self._claims, nbytes)

    def enter(self, nbytes: int) -> Asked:
        """A chunk comes into memory; the future is done once there is room for it. One that is cancelled gets none."""
        with self._lock:
            asked, granted = self._stand(self._chunks, nbytes)
        return self._told(self._chunks, asked, granted)

    def leave(self, nbytes: int) -> None:
        """Chunks have left memory."""
        self._give_back(self._chunks, nbytes)

    def _stand(self, line: _Line, nbytes: int) -> tuple[Asked, list[Asked]]:
        asked = Asked()
        line.waiting.append((nbytes, asked))
        return asked, line.grant()

    def _told(self, line: _Line, asked: Asked, granted: list[Asked]) -> Asked:
        """Say yes, without a lock: what waits for it may come back here. One that gives up makes way for the next."""
        for each in granted:
            each.set_result(True)
        if not asked.done():
            asked.add_done_callback(lambda ended: self._give_back(line, 0) if ended.cancelled() else None)
        return asked

    def _give_back(self, line: _Line, nbytes: int) -> None:
        with self._lock:
            line.taken -= nbytes
            if nbytes:
                self.released_at = self._clock()
            granted = line.grant()
        for each in granted:
            each.set_result(True)
