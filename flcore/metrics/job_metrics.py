"""The metrics of one job: counters that its events feed, and what its board shows."""

import threading
from bisect import bisect_left
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import accumulate
from typing import NamedTuple

from flcore.metrics.families import BUCKETS_S
from flcore.server.background_observer import BackgroundObserver
from flcore.server.events import (
    BytesTransferred,
    ClientFailed,
    Event,
    Observer,
    RoundFinished,
    TaskAnswered,
    TaskRetried,
    notify_all,
)
from flcore.status.board import StatusBoard
from flcore.status.job_status import JobStatus
from flcore.status.timeline import PHASES, PhaseName

MAX_PHASES = 32
"""The most phases of the server's rounds that a histogram has; the rest is "other". A job's tasks give their names."""

TIMED_PHASES: tuple[PhaseName, ...] = ("queued", "downloading", "training", "uploading", "checked")
"""The phases of clients that have a duration: the others last until the round is over."""


class Sample(NamedTuple):
    """The content of a histogram: the count up to each bound (the last one: all), and the sum of the values."""

    cumulative: tuple[int, ...]
    total_s: float


class Histogram:
    """Durations in buckets. Not thread-safe."""

    def __init__(self) -> None:
        self._counts = [0] * (len(BUCKETS_S) + 1)
        self._total_s = 0.0

    def add(self, seconds: float) -> None:
        """Count a duration."""
        self._counts[bisect_left(BUCKETS_S, seconds)] += 1
        self._total_s += seconds

    def sample(self) -> Sample:
        """Return the content."""
        return Sample(tuple(accumulate(self._counts)), self._total_s)


class JobSample(NamedTuple):
    """The metrics of a job at one moment.

    Attributes:
        status: The job's status.
        counts: The values of the counters that events feed, by the name of the metric.
        round_seconds: Durations of the rounds' phases at the server, by phase.
        client_seconds: Durations of the clients' phases, by phase.
        clients: The number of clients in each phase.
    """

    status: JobStatus
    counts: dict[str, int]
    round_seconds: dict[str, Sample]
    client_seconds: dict[str, Sample]
    clients: dict[str, int]


class JobMetrics:
    """The metrics of one job. Thread-safe.

    Args:
        board: The job's board.
    """

    def __init__(self, board: StatusBoard) -> None:
        self._board = board
        self._lock = threading.Lock()
        self._counts = dict.fromkeys(
            (
                "flcore_received_pieces",
                "flcore_sent_pieces",
                "flcore_rounds",
                "flcore_skipped_rounds",
                "flcore_answers",
                "flcore_client_failures",
                "flcore_task_retries",
            ),
            0,
        )
        self._round_seconds: dict[str, Histogram] = {}
        self._client_seconds: dict[str, Histogram] = {phase: Histogram() for phase in TIMED_PHASES}

    @contextmanager
    def observing(self) -> Iterator[Observer]:
        """Return the observer of the job's events while a block lasts. Timelines are read on a thread of its own."""

        def finished_round(event: Event) -> int | None:
            return event.record.round if isinstance(event, RoundFinished) else None

        with BackgroundObserver("metrics", finished_round, self._add_timeline) as timelines:
            yield notify_all(self._count, timelines.observe)

    def sample(self) -> JobSample:
        """Return the metrics now."""
        status = self._board.snapshot()
        clients = dict.fromkeys(PHASES, 0)
        for client in status.clients:
            if client.phase:
                clients[client.phase] += 1
        with self._lock:
            return JobSample(
                status,
                dict(self._counts),
                {phase: each.sample() for phase, each in self._round_seconds.items()},
                {phase: each.sample() for phase, each in self._client_seconds.items()},
                {str(phase): count for phase, count in clients.items()},
            )

    def _count(self, event: Event) -> None:
        match event:
            case BytesTransferred():
                with self._lock:
                    self._counts["flcore_sent_pieces"] += event.sent > 0
                    self._counts["flcore_received_pieces"] += event.received > 0
            case TaskAnswered():
                self._add("flcore_answers")
            case ClientFailed():
                self._add("flcore_client_failures")
            case TaskRetried():
                self._add("flcore_task_retries")
            case RoundFinished():
                self._add("flcore_rounds")
                if event.record.skipped:
                    self._add("flcore_skipped_rounds")
                self._add_round(event.record.seconds)
            case _:
                pass

    def _add(self, name: str) -> None:
        with self._lock:
            self._counts[name] += 1

    def _add_round(self, seconds_by_phase: dict[str, float]) -> None:
        with self._lock:
            for phase, seconds in seconds_by_phase.items():
                is_known = phase in self._round_seconds or len(self._round_seconds) < MAX_PHASES - 1
                self._round_seconds.setdefault(phase if is_known else "other", Histogram()).add(seconds)

    def _add_timeline(self, round_number: int) -> None:
        phases = self._board.timeline(round_number)
        with self._lock:
            for phase in phases:
                if phase.phase in self._client_seconds and phase.end_s is not None:
                    self._client_seconds[phase.phase].add(max(0.0, phase.end_s - phase.begin_s))
