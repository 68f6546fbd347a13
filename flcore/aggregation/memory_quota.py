"""The memory quota of staged updates: reserved by the update, acquired and released by the chunk."""

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
    """Bytes in use, their limit, and a FIFO queue of requests."""

    limit: float
    used: int = 0
    queue: deque[tuple[int, QuotaRequest]] = field(default_factory=deque)

    def fits(self, nbytes: int) -> bool:
        """Whether so many bytes are free, and no request waits."""
        return self.used + nbytes <= self.limit and not self.queue

    def grant(self) -> list[QuotaRequest]:
        """Grant requests from the head of the queue while they fit; return their futures."""
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

    An update reserves memory for all its chunks before the first one arrives, so partly received updates never wait for
    each other. The reservation is cancelled when its chunks begin to be freed one by one. The next update may then
    start, and its chunks are admitted in turn as others are freed.
    """

    def __init__(self, limit_bytes: int | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        limit, self._clock = math.inf if limit_bytes is None else limit_bytes, clock
        self.released_at = -math.inf
        """The time of the last release. Waiting for memory makes sense while it advances."""
        self._lock = threading.Lock()
        self._reservations, self._chunks = _Pool(limit), _Pool(limit)

    def reserve(self, nbytes: int, *, may_wait: bool) -> QuotaRequest:
        """Request a reservation; the future's result is whether it was granted. Cancelling the future withdraws it.

        With `may_wait`, the request queues until others release theirs. Without, it is granted at once or not at all.
        """
        with self._lock:
            if nbytes <= self._reservations.limit and (may_wait or self._reservations.fits(nbytes)):
                request, granted = self._enqueue(self._reservations, nbytes)
            else:
                request, granted = QuotaRequest(), []
                request.set_result(False)
        return self._notify(self._reservations, request, granted)

    def cancel_reservation(self, nbytes: int) -> None:
        """Release a reservation."""
        self._return(self._reservations, nbytes)

    def acquire(self, nbytes: int) -> QuotaRequest:
        """Request memory for a chunk; the future is done once it is granted. Cancelling it withdraws the request."""
        with self._lock:
            request, granted = self._enqueue(self._chunks, nbytes)
        return self._notify(self._chunks, request, granted)

    def release(self, nbytes: int) -> None:
        """Release the memory of chunks."""
        self._return(self._chunks, nbytes)

    def _enqueue(self, pool: _Pool, nbytes: int) -> tuple[QuotaRequest, list[QuotaRequest]]:
        request = QuotaRequest()
        pool.queue.append((nbytes, request))
        return request, pool.grant()

    def _notify(self, pool: _Pool, request: QuotaRequest, granted: list[QuotaRequest]) -> QuotaRequest:
        """Complete granted futures outside the lock, as callbacks may re-enter. Cancelling lets the next one pass."""
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
