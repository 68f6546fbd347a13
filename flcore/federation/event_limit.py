"""A limit for entries of the audit log that a caller can cause without an end: refused requests, refusals of jobs."""

import logging
import threading
import time
from collections.abc import Callable, Hashable

from flcore_transport import RateLimit

logger = logging.getLogger(__name__)

BURST_EVENTS = 100
EVENTS_PER_S = 0.1
"""The entries of one caller at once, and in the long run: 8,640 a day, some MB."""


class EventLimit:
    """A rate of events for each caller. Thread-safe.

    Args:
        clock: A monotonic clock in seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._rate = RateLimit(BURST_EVENTS, EVENTS_PER_S)
        self._omitted = 0

    def take(self, caller: Hashable) -> bool:
        """Count an event, and return whether it is within the caller's limit."""
        with self._lock:
            is_within = self._rate.take(caller, self._clock())
            self._omitted += not is_within
            omitted = self._omitted
        if not is_within and omitted.bit_count() == 1:  # 1, 2, 4, ...: a flood leaves some lines
            logger.warning("%s: %d refusals are not in the audit log, as there were too many", caller, omitted)
        return is_within
