"""Room in memory that staged updates share: claimed for a whole update at a time, taken and given back by the chunk."""

import math
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field

QuotaRequest = Future[bool]


@dataclass
class _Pool:
    """Bytes that are taken, of so many that there are, and those that wait for some in turn."""

    limit: float
    used: int = 0
    queue: deque[tuple[int, QuotaRequest]] = field(default_factory=deque)

    def fits(self, nbytes: int) -> bool:
        """Whether so many bytes could be had at once."""
        return self.used + nbytes <= self.limit and not self.queue

    def grant(self) -> list[QuotaRequest]:
        """Take what those at the head of the line wait for, as far as there is some; return their futures."""
        granted: list[QuotaRequest] = []
        while self.queue:
            nbytes, request = self.queue[0]
            if not request.cancelled():
                if self.used + nbytes > self.limit:
                    break
                if request.set_running_or_notify_cancel():
                    self.used += nbytes
                    granted.append(request)
            self.queue.popleft()
        return granted


class MemoryQuota:
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
        self._reservations, self._chunks = _Pool(limit), _Pool(limit)

    def reserve(self, nbytes: int, *, may_wait: bool) -> QuotaRequest:
        """Ask for room; the result is whether there is. With `may_wait` it is given as others release theirs, in turn.

        A future that is cancelled gets none.
        """
        with self._lock:
            if nbytes <= self._reservations.limit and (may_wait or self._reservations.fits(nbytes)):
                request, granted = self._enqueue(self._reservations, nbytes)
            else:
                request, granted = QuotaRequest(), []
                request.set_result(False)
        return self._notify(self._reservations, request, granted)

    def cancel_reservation(self, nbytes: int) -> None:
        """Give a claim back."""
        self._return(self._reservations, nbytes)

    def acquire(self, nbytes: int) -> QuotaRequest:
        """A chunk comes into memory; the future is done once there is room for it. One that is cancelled gets none."""
        with self._lock:
            request, granted = self._enqueue(self._chunks, nbytes)
        return self._notify(self._chunks, request, granted)

    def release(self, nbytes: int) -> None:
        """Chunks have left memory."""
        self._return(self._chunks, nbytes)

    def _enqueue(self, pool: _Pool, nbytes: int) -> tuple[QuotaRequest, list[QuotaRequest]]:
        request = QuotaRequest()
        pool.queue.append((nbytes, request))
        return request, pool.grant()

    def _notify(self, pool: _Pool, request: QuotaRequest, granted: list[QuotaRequest]) -> QuotaRequest:
        """Say yes, without a lock: what waits for it may come back here. One that gives up makes way for the next."""
        for each in granted:
            each.set_result(True)
        if not request.done():
            request.add_done_callback(lambda ended: self._return(pool, 0) if ended.cancelled() else None)
        return request

    def _return(self, pool: _Pool, nbytes: int) -> None:
        with self._lock:
            pool.used -= nbytes
            if nbytes:
                self.released_at = self._clock()
            granted = pool.grant()
        for each in granted:
            each.set_result(True)
