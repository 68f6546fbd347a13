"""`flcore.progress`: a job's code tells how far its task is."""

import math
import numbers
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

from flcore.number_text import share_text

INTERVAL_S = 1.0
"""The shortest time between two reports of a task. Calls in between cost a comparison of times."""


@dataclass(frozen=True, slots=True)
class TaskProgress:
    """How far a task is at one client: `done` of `total` units.

    >>> str(TaskProgress("north", "train", 3, 10, 20, 80))
    'north: round 3 of 10: train 20 of 80 (25 %)'
    """

    client: str
    task: str
    round: int
    rounds: int
    done: float
    total: float

    def __str__(self) -> str:
        return (
            f"{self.client}: round {self.round} of {self.rounds}: {self.task} {self.done:g} of {self.total:g} "
            f"({share_text(self.done / self.total)})"
        )


ProgressSink = Callable[[TaskProgress], None]
"""Receives at most one report of a task in `INTERVAL_S`, on the thread that runs the task."""


class _Reporter:
    """The reports of one task."""

    __slots__ = ("_client", "_due_at", "_round", "_rounds", "_sink", "_task")

    def __init__(self, sink: ProgressSink, client: str, task: str, round_number: int, rounds: int) -> None:
        self._sink, self._client, self._task = sink, client, task
        self._round, self._rounds, self._due_at = round_number, rounds, 0.0

    def report(self, done: float, total: float) -> None:
        now = time.monotonic()
        if now >= self._due_at:
            self._due_at = now + INTERVAL_S
            self._sink(TaskProgress(self._client, self._task, self._round, self._rounds, float(done), float(total)))


_reporter: ContextVar[_Reporter | None] = ContextVar("flcore_progress", default=None)


@contextmanager
def report_progress(
    sink: ProgressSink | None, client: str, task: str, round_number: int, rounds: int
) -> Iterator[None]:
    """Pass this thread's calls of `progress` to a sink while the block, in which the task runs, lasts."""
    token = _reporter.set(None if sink is None else _Reporter(sink, client, task, round_number, rounds))
    try:
        yield
    finally:
        _reporter.reset(token)


def progress(done: float, total: float) -> None:
    """Tell how far the present task is. It is shown at the site, and at the server of a standing federation.

    May be called as often as you like: at most one call a second is reported. Does nothing outside a task, and in
    threads that the task's function has started.

    Args:
        done: The units that are done, such as batches: 0 to `total`.
        total: All units of the task: a finite number > 0.

    Raises:
        ValueError: An argument is no such number.

    Example:
        >>> for batch in range(3):
        ...     flcore.progress(batch, 3)
    """
    if not (_is_number(done) and _is_number(total) and 0 <= done <= total and 0 < total < math.inf):
        raise ValueError(f"expected numbers 0 <= done <= total with a finite total > 0, got done={done!r}, {total=}")
    reporter = _reporter.get()
    if reporter is not None:
        reporter.report(done, total)


def _is_number(value: object) -> bool:
    # The types are compared first: an abstract class takes most of the time of a call.
    return type(value) in (int, float) or (isinstance(value, numbers.Real) and not isinstance(value, bool))
