"""The rate of bytes over the last seconds, in constant memory."""

WINDOW_S = 10
"""The seconds over which a rate is taken."""

MEGABYTE = 1e6


class Rate:
    """Bytes per second of the clock, for the last `WINDOW_S` seconds.

    >>> rate = Rate(100.0)
    >>> for second in range(4):
    ...     rate.add(3_000_000, 100.0 + second)
    >>> rate.megabytes_per_s(104.0), rate.megabytes_per_s(130.0)
    (3.0, 0.0)
    """

    def __init__(self, now: float) -> None:
        self._begin = now
        self._second = int(now)
        self._bytes = [0] * WINDOW_S

    def add(self, nbytes: int, now: float) -> None:
        """Add bytes that were transferred now."""
        self._advance(int(now))
        self._bytes[int(now) % WINDOW_S] += nbytes

    def megabytes_per_s(self, now: float) -> float:
        """Return the rate of the last seconds; of a younger rate, since its begin."""
        self._advance(int(now))
        elapsed_s = min(now - self._begin, WINDOW_S - 1 + now % 1)
        return sum(self._bytes) / MEGABYTE / elapsed_s if elapsed_s > 0 else 0.0

    def _advance(self, second: int) -> None:
        """Forget the seconds that have left the window."""
        for passed in range(self._second + 1, min(second, self._second + WINDOW_S) + 1):
            self._bytes[passed % WINDOW_S] = 0
        self._second = max(self._second, second)
