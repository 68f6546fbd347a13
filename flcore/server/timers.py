"""Which of many clients has something due next. Moving a client's time costs a logarithm, and mostly nothing."""

import heapq
import math
from collections.abc import Iterator

NEVER = math.inf


class Timers:
    """One time per client, in seconds.

    A time may be moved back without being told: an entry that comes up too early is looked at and armed anew. So the
    thousands of pieces of an upload move a time without touching the heap.

    >>> timers = Timers()
    >>> timers.arm("a", 5.0), timers.arm("b", 3.0), timers.arm("a", 9.0)
    (None, None, None)
    >>> timers.next, list(timers.due(6.0)), timers.next
    (3.0, ['b', 'a'], inf)
    """

    def __init__(self) -> None:
        self._heap: list[tuple[float, str]] = []
        self._armed: dict[str, float] = {}

    @property
    def next(self) -> float:
        """When the first client may have something due."""
        return self._heap[0][0] if self._heap else NEVER

    def arm(self, client: str, at: float) -> None:
        """See that `client` comes up at `at`, or earlier."""
        if at < self._armed.get(client, NEVER):
            self._armed[client] = at
            heapq.heappush(self._heap, (at, client))

    def due(self, now: float) -> Iterator[str]:
        """Yield the clients whose time has come; each is to be armed anew, if it has another time."""
        while self._heap and self._heap[0][0] <= now:
            at, client = heapq.heappop(self._heap)
            if self._armed.get(client) == at:  # and not an entry that an earlier one took the place of
                del self._armed[client]
                yield client
