"""A client's connection that tells what the client does: it waits, downloads, works on its task, uploads."""

import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from flcore_layout import Layout
from flcore_transport import (
    DownloadRequest,
    Failure,
    FromServer,
    Join,
    Outbox,
    Receipt,
    TaskAssignment,
    UploadRequest,
    Withdrawal,
)
from flcore_transport.piece_format import PieceRanges, piece_bytes

from flcore.client.client import Connection
from flcore.job.messages import AnswerContent, MalformedMessage, TaskContent, parse_content

ActivityPhase = Literal["waiting", "downloading", "training", "uploading"]

MAX_ASSIGNMENTS = 16
"""The last assignments whose tasks are known. A client works on one at a time."""


@dataclass(frozen=True, slots=True)
class ClientActivity:
    """What a client does.

    Attributes:
        phase: "training" is the work on its task, whichever it is.
        task: The task; empty before the first one.
        round: The task's round.
        rounds: The rounds of the job.
        done_bytes: Bytes of the present transfer that are done.
        total_bytes: All bytes of it; 0 without a transfer.
        metrics: The metrics of the last answer that the server has taken.
    """

    phase: ActivityPhase = "waiting"
    task: str = ""
    round: int = 0
    rounds: int = 0
    done_bytes: int = 0
    total_bytes: int = 0
    metrics: Mapping[str, float] = field(default_factory=dict)


class ObservedConnection:
    """A connection of a `Client` that passes what the client does to an observer.

    Args:
        connection: The connection.
        observe: Receives each change, and each piece of a transfer, on the client's threads. Must return at once.
    """

    def __init__(self, connection: Connection, observe: Callable[[ClientActivity], None]) -> None:
        self.address = connection.address
        self._connection, self._observe = connection, observe
        self._activity = ClientActivity()
        self._assigned: dict[int, TaskContent] = {}
        self._next: int | None = None  # an assignment that came before the end of the one before
        self._lock = threading.Lock()  # the session has a thread of its own

    def session(self, join: Join) -> Iterator[FromServer]:
        """Join, and yield the server's messages."""
        for message in self._connection.session(join):
            if isinstance(message, TaskAssignment):
                self._note_assignment(message)
            elif isinstance(message, Withdrawal):
                self._take_next(message.assignment_id)
            yield message

    def download(self, request: DownloadRequest, layout: Layout | None = None) -> Iterator[bytes]:
        """Yield the pieces of an assignment's payload."""
        self._take_next(request.assignment_id)
        sizes = [piece_bytes(range_.dtype, range_.count) for range_ in PieceRanges(layout or Layout())]
        self._begin("downloading", request.assignment_id, sum(sizes[: request.first_piece]), sum(sizes))
        for piece in self._connection.download(request, layout):
            self._add(len(piece))
            yield piece
        self._begin("training", request.assignment_id)

    def upload(self, request: UploadRequest, outbox: Outbox) -> Receipt:
        """Send an answer."""
        total = sum(piece_bytes(range_.dtype, range_.count) for range_ in outbox.piece_ranges)
        self._begin("uploading", request.assignment_id, 0, total)
        try:
            receipt = self._connection.upload(request, _ObservedOutbox(outbox, self._add))
            self._activity = replace(self._activity, metrics=_metrics_of(request.content))
        finally:
            self._end(request.assignment_id)
        return receipt

    def report(self, failure: Failure) -> Receipt:
        """Report that an assignment has failed."""
        self._end(failure.assignment_id)
        return self._connection.report(failure)

    def running_transfers(self) -> list[Callable[[], object]]:
        """Return a function for each upload and download that runs now, which ends it."""
        return self._connection.running_transfers()

    def close(self) -> None:
        """End every call."""
        self._connection.close()

    def _note_assignment(self, message: TaskAssignment) -> None:
        try:
            content = parse_content(TaskContent, message.content)
        except MalformedMessage:  # the client says so
            return
        kept = sorted(self._assigned)[-MAX_ASSIGNMENTS + 1 :]
        self._assigned = {number: self._assigned[number] for number in kept} | {message.assignment_id: content}
        with self._lock:
            is_idle = self._activity.phase == "waiting"
            if not is_idle:
                self._next = message.assignment_id
        if is_idle:  # of a model that is here already there is no download
            self._begin("training", message.assignment_id)

    def _take_next(self, assignment_id: int) -> None:
        """The assignment is no longer the next one, if it was."""
        with self._lock:
            if self._next == assignment_id:
                self._next = None

    def _end(self, assignment_id: int) -> None:
        """An assignment is over: the client waits, or works on the next one."""
        with self._lock:
            self._activity = self._of("waiting", assignment_id)
            waiting, next_one, self._next = self._activity, self._next, None
        self._observe(waiting)
        if next_one is not None:
            self._begin("training", next_one)

    def _begin(self, phase: ActivityPhase, assignment_id: int, done_bytes: int = 0, total_bytes: int = 0) -> None:
        self._activity = self._of(phase, assignment_id, done_bytes, total_bytes)
        self._observe(self._activity)

    def _of(
        self, phase: ActivityPhase, assignment_id: int, done_bytes: int = 0, total_bytes: int = 0
    ) -> ClientActivity:
        content, metrics = self._assigned.get(assignment_id), self._activity.metrics
        task, number, rounds = ("", 0, 0) if content is None else (content.task, content.round, content.rounds)
        return ClientActivity(phase, task, number, rounds, done_bytes, total_bytes, metrics)

    def _add(self, nbytes: int) -> None:
        self._activity = replace(self._activity, done_bytes=self._activity.done_bytes + nbytes)
        self._observe(self._activity)


class _ObservedOutbox(Outbox):
    """An outbox that tells the bytes of each piece that is sent."""

    def __init__(self, outbox: Outbox, add: Callable[[int], None]) -> None:
        self.piece_ranges = outbox.piece_ranges
        self._outbox, self._add = outbox, add

    def on_queued(self) -> None:
        """Tell the outbox."""
        self._outbox.on_queued()

    def cached_piece(self, index: int) -> bytes | None:
        """Return piece `index` if it is cached, else None."""
        return self._outbox.cached_piece(index)

    def piece(self, index: int) -> bytes:
        """Return piece `index`, encoded."""
        piece = self._outbox.piece(index)
        self._add(len(piece))
        return piece


def _metrics_of(content: bytes) -> dict[str, float]:
    """Return the metrics of an answer that this client has made."""
    metrics = parse_content(AnswerContent, content).metrics
    return {name: float(value) for name, value in metrics.items() if isinstance(value, int | float)}
