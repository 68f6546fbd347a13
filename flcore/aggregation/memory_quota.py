"""The memory quota of staged updates: an update reserves all of its bytes, and its chunks acquire and release theirs.

Two pools of the same size count the same bytes at different times. *Reservations* decide which updates may be received
in memory; *chunks* decide how many bytes are there. An update's chunks fit into its reservation, so they never wait
for another update that is being received. When an update begins to be folded, its reservation is released at once and
its chunks are released one by one. The next update's reservation is granted then, and its chunks wait only until those
of the folded one leave. So at most `limit_bytes` of chunks are in memory, and receiving overlaps with folding.
"""

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
        """Return whether so many bytes are free and no request waits: a small request must not overtake a large one."""
        return self.used + nbytes <= self.limit and not self.queue

    def grant(self) -> list[QuotaRequest]:
        """Grant requests from the head of the queue while they fit; return their futures."""
        granted: list[QuotaRequest] = []
        while self.queue:
            nbytes, request = self.queue[0]
            if not request.cancelled():
                if self.used + nbytes > self.limit:
                    break
                # False if the request is cancelled between the two lines: it must not take bytes then.
                if request.set_running_or_notify_cancel():
                    self.used += nbytes
                    granted.append(request)
            self.queue.popleft()
        return granted


class MemoryQuota:
    """At most `limit_bytes` of chunks in memory (None: no bound). Thread-safe; no method blocks.

    Futures are completed without the lock, because their callbacks may call the quota again. A caller must not hold a
    lock of its own that such a callback takes: `StagedChunks` releases its bytes after its lock.
    """

    def __init__(self, limit_bytes: int | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        limit, self._clock = math.inf if limit_bytes is None else limit_bytes, clock
        self.released_at = -math.inf
        """The time of the last release. Waiting for memory makes sense while it advances."""
        self._lock = threading.Lock()
        self._reservations, self._chunks = _Pool(limit), _Pool(limit)

    @property
    def used_bytes(self) -> int:
        """The bytes of chunks in memory."""
        with self._lock:
            return self._chunks.used

    def reserve(self, nbytes: int, *, may_wait: bool) -> QuotaRequest:
        """Request a reservation for a whole update.

        A reservation comes before the first chunk. Otherwise several updates could fill the memory with halves, each
        waiting for another one's rest.

        Args:
            nbytes: The bytes of all its chunks.
            may_wait: Queue until others release their reservations. If False, the request is granted at once or never.

        Returns:
            A future: whether the reservation was granted. Cancelling it withdraws the request.
        """
        with self._lock:
            if nbytes <= self._reservations.limit and (may_wait or self._reservations.fits(nbytes)):
                request, granted = self._enqueue(self._reservations, nbytes)
            else:
                request, granted = QuotaRequest(), []
                request.set_result(False)
        return self._notify(self._reservations, request, granted)

    def release_reservation(self, nbytes: int) -> None:
        """Release a reservation: the update's chunks begin to be freed, or are on disk."""
        self._return(self._reservations, nbytes)

    def acquire_chunk(self, nbytes: int) -> QuotaRequest:
        """Request memory for a chunk. The future is done once it is granted; cancelling it withdraws the request."""
        with self._lock:
            request, granted = self._enqueue(self._chunks, nbytes)
        return self._notify(self._chunks, request, granted)

    def release_chunks(self, nbytes: int) -> None:
        """Release the memory of chunks."""
        self._return(self._chunks, nbytes)

    def _enqueue(self, pool: _Pool, nbytes: int) -> tuple[QuotaRequest, list[QuotaRequest]]:
        request = QuotaRequest()
        pool.queue.append((nbytes, request))
        return request, pool.grant()

    def _notify(self, pool: _Pool, request: QuotaRequest, granted: list[QuotaRequest]) -> QuotaRequest:
        """Complete granted futures. If the new request still waits, have its cancellation grant the one behind it."""
        for future in granted:
            future.set_result(True)
        if not request.done():
            request.add_done_callback(lambda ended: self._return(pool, 0) if ended.cancelled() else None)
        return request

    def _return(self, pool: _Pool, nbytes: int) -> None:
        with self._lock:
            pool.used -= nbytes
            if nbytes:
                self.released_at = self._clock()
            granted = pool.grant()
        for future in granted:
            future.set_result(True)
