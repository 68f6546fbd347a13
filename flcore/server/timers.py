"""The timers of many clients. Moving a client's time costs O(log n) at most, and mostly nothing."""

import heapq
import math
from collections.abc import Iterator

NEVER = math.inf


class Timers:
    """One timer per client; times are in seconds.

    A timer comes up at its time or earlier. The owner compares with the real time, and arms the timer again. So a time
    that only moves later, as with each of the thousands of pieces of an upload, does not touch the heap.

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
        """The time of the first timer."""
        return self._heap[0][0] if self._heap else NEVER

    def arm(self, client: str, at: float) -> None:
        """Have the timer of `client` come up at `at`, or earlier if it is armed for an earlier time."""
        if at < self._armed.get(client, NEVER):
            self._armed[client] = at
            heapq.heappush(self._heap, (at, client))

    def due(self, now: float) -> Iterator[str]:
        """Yield the clients whose timers have come up. These timers are no longer armed."""
        while self._heap and self._heap[0][0] <= now:
            at, client = heapq.heappop(self._heap)
            # An entry whose client was armed for an earlier time since is outdated, and skipped.
            if self._armed.get(client) == at:
                del self._armed[client]
                yield client
