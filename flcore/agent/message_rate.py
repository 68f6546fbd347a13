"""A bound for the messages of a job's process that reach the agent's own output."""

import time
from collections.abc import Callable

BURST = 20
"""Messages that pass without a pause."""

PER_S = 2.0
"""Messages a second that pass in the long run."""


class MessageRate:
    """Lets messages pass at a bounded rate, and counts the others. For one thread.

    Args:
        clock: A monotonic clock in seconds.

    Example:
        >>> rate = MessageRate(clock=lambda: 0.0)
        >>> sum(rate.admit() for _ in range(100)), rate.take_left_out()
        (20, 80)
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._allowed, self._counted_at = float(BURST), clock()
        self._left_out = 0

    def admit(self) -> bool:
        """Whether the next message passes."""
        now = self._clock()
        self._allowed = min(float(BURST), self._allowed + (now - self._counted_at) * PER_S)
        self._counted_at = now
        if self._allowed < 1:
            self._left_out += 1
            return False
        self._allowed -= 1
        return True

    def take_left_out(self) -> int:
        """Return how many messages did not pass since the last call."""
        count, self._left_out = self._left_out, 0
        return count
