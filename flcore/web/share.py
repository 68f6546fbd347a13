"""The share of a core that the page may take over time. A flood of requests waits, and not the run.

All threads of a process share one interpreter lock, so each second of the page's threads is one that a run may lose.
"""

import threading
import time
from collections.abc import Callable
from typing import TypeVar

ResultT = TypeVar("ResultT")


class Share:
    """A share of a core, over time. Thread-safe.

    Args:
        share: The share.
        burst_s: The processor's time that may be taken at once.
    """

    def __init__(self, share: float, burst_s: float) -> None:
        self._share, self._burst_s = share, burst_s
        self._left_s, self._counted_s = burst_s, time.monotonic()
        self._lock, self._lifted = threading.Lock(), threading.Event()

    def spend(self, used_s: float) -> None:
        """Count processor's time that was taken."""
        with self._lock:
            now_s = time.monotonic()
            self._left_s = min(self._burst_s, self._left_s + (now_s - self._counted_s) * self._share) - used_s
            self._counted_s = now_s

    def wait(self) -> None:
        """Wait until no more was taken than the share, or until `lift`."""
        with self._lock:
            left_s = self._left_s + (time.monotonic() - self._counted_s) * self._share
        if left_s < 0:
            self._lifted.wait(-left_s / self._share)

    def run(self, make: Callable[[], ResultT]) -> ResultT:
        """Return a function's result. Waits for its turn, and counts the thread's time that it takes."""
        self.wait()
        began_s = time.thread_time()
        try:
            return make()
        finally:
            self.spend(time.thread_time() - began_s)

    def lift(self) -> None:
        """End all waits, for good: the page ends."""
        self._lifted.set()
