"""Long polls: replies that wait until something changes, `MAX_WAIT_S` at most. A wait holds no thread.

One thread ends the waits whose time is over. Without waits it sleeps, without a timeout.
"""

import threading
import time
from _thread import start_new_thread
from collections.abc import Callable
from concurrent.futures import Future
from typing import Generic, TypeVar

from flcore.federation.messages import MAX_WAIT_S

ReplyT = TypeVar("ReplyT")

MAX_WAITS = 1_000
"""More calls than these are answered at once, with what there is."""


class _Wait(Generic[ReplyT]):
    """One waiting call: `attempt(False)` returns its reply or None, `attempt(True)` what there is at the end."""

    def __init__(self, job: int, until: float, attempt: "Callable[[bool], ReplyT | None]") -> None:
        self.job, self.until = job, until
        self.future: Future[ReplyT] = Future()
        self._attempt = attempt
        self._claim = threading.Lock()  # never released: a change and the end of the time may come at once

    def try_end(self, *, is_over: bool) -> bool:
        """End the wait if there is a reply, or if its caller has gone. Returns whether it has ended."""
        if self.future.done():
            return True
        try:
            reply = self._attempt(is_over)
        except Exception as error:  # noqa: BLE001 - the caller's future raises it
            if self._may_set():
                self.future.set_exception(error)
            return True
        if reply is None:
            return False
        if self._may_set():
            self.future.set_result(reply)
        return True

    def _may_set(self) -> bool:
        return self._claim.acquire(blocking=False) and self.future.set_running_or_notify_cancel()


class Waits(Generic[ReplyT]):
    """The calls that wait for a change of a job. Thread-safe. Attempts run without the lock."""

    def __init__(self, max_wait_s: float = MAX_WAIT_S) -> None:
        self._max_wait_s = max_wait_s
        self._changed = threading.Condition()
        self._waits: list[_Wait[ReplyT]] = []
        self._is_closed = self._has_thread = False

    @property
    def has_any(self) -> bool:
        """Whether a call waits."""
        return bool(self._waits)

    def wait(self, job: int, attempt: "Callable[[bool], ReplyT | None]") -> "Future[ReplyT]":
        """Return a future of the reply of `attempt`, which is tried at once, and at each change of the job.

        Args:
            job: The job's number.
            attempt: Returns the reply, or None to wait on. It is called with whether the time is over: then it returns
                a reply.
        """
        wait = _Wait(job, time.monotonic() + self._max_wait_s, attempt)
        with self._changed:
            may_wait = len(self._waits) < MAX_WAITS and not self._is_closed
            if may_wait:  # before the first attempt: a change after it is not missed
                self._waits.append(wait)
                if not self._has_thread:
                    self._has_thread = True
                    start_new_thread(self._end_overdue, ())
                self._changed.notify_all()
        if wait.try_end(is_over=not may_wait):
            self._remove(wait)
        return wait.future

    def changed(self, job: int) -> None:
        """A job has changed: try its waits again."""
        with self._changed:
            found = [wait for wait in self._waits if wait.job == job]
        for wait in found:
            if wait.try_end(is_over=False):
                self._remove(wait)

    def close(self) -> None:
        """End all waits with what there is."""
        with self._changed:
            self._is_closed = True
            waits, self._waits = self._waits, []
            self._changed.notify_all()
        for wait in waits:
            wait.try_end(is_over=True)

    def _remove(self, wait: _Wait[ReplyT]) -> None:
        with self._changed:
            if wait in self._waits:
                self._waits.remove(wait)

    def _end_overdue(self) -> None:
        while True:
            with self._changed:
                if self._is_closed:
                    return
                due = min((wait.until for wait in self._waits), default=None)
                self._changed.wait(None if due is None else max(0.0, due - time.monotonic()))
                now = time.monotonic()
                overdue = [wait for wait in self._waits if wait.until <= now]
                self._waits = [wait for wait in self._waits if wait.until > now]
            for wait in overdue:
                wait.try_end(is_over=True)
