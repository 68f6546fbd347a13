"""The status board of one job: its state, folded from its server's events."""

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Self

from flcore.job.contract import Contract
from flcore.server.events import Event
from flcore.server.history import RoundRecord
from flcore.status.fold import JobFold
from flcore.status.job_status import JobStatus, RoundStatus
from flcore.status.resources import probe
from flcore.status.rounds import round_status, time_left_s
from flcore.status.timeline import ROUNDS_KEPT, Phase


class StatusBoard:
    """The state of one job, folded from its server's events.

    Make one with `StatusBoard.of(contract)`, and give it to `serve(board=...)`, which passes it the events of the run:
    `observe` is an observer of a server (`flcore.server.events.Observer`). Any thread may call any method at any time,
    also after the run's end. The lock is held for one event, or for one client of a snapshot, and never while a file is
    read.

    What it keeps is bounded: `MAX_CLIENTS` clients, the timelines of `ROUNDS_KEPT` rounds (24 bytes a span, 400,000
    spans), `MAX_REFUSALS` refusals, reasons of 300 characters. Clients' names, reasons and metrics are hostile text.
    They have no control characters; who writes HTML escapes them.

    A program that shows the board waits for its changes, and does not poll::

        version = 0
        while True:
            version = board.wait(version, timeout_s=15.0)  # returns at once if something has changed since
            show(board.snapshot())                         # at most as often as you want to redraw

    - `snapshot()`: a `JobStatus`, for tables, JSON and gauges.
    - `timeline(round)`: the phases of each client in one of the last rounds (`timeline_rounds()`).
    - `records()`: the records of all rounds that are over, for metrics by round and by site: those of
      `history.jsonl`, also of rounds before a restart.

    Args:
        job: The contract's name.
        rounds: The number of rounds of the contract.
        clients: The names of the invited clients, if the contract lists them. Default: none.
        id: The job's id. Default: empty, the run's.
        clock: Returns seconds since the epoch.

    Example:
        >>> from flcore.server.events import ClientJoined, RunEnded
        >>> board = StatusBoard("digits", rounds=60, clients=("north", "south"))
        >>> board.observe(ClientJoined("north", 1))
        >>> status = board.snapshot()
        >>> status.state, status.connected, [client.name for client in status.clients if client.is_connected]
        ('waiting', 1, ['north'])
        >>> board.observe(RunEnded("the job is done", failed=False))
        >>> board.snapshot().to_json()["state"]
        'done'
    """

    def __init__(
        self,
        job: str,
        rounds: int,
        clients: Sequence[str] = (),
        *,
        id: str = "",  # noqa: A002 - the field's name
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._clock = clock
        self._changed = threading.Condition(threading.Lock())
        self._version = 1
        self._fold = JobFold(JobStatus(job, id, rounds=rounds), clients, clock())

    @classmethod
    def of(cls, contract: Contract, *, id: str = "") -> Self:  # noqa: A002 - the field's name
        """Return the board of a job with this contract."""
        clients = contract.clients if isinstance(contract.clients, tuple) else ()
        return cls(contract.name, contract.server.rounds, clients, id=id)

    def observe(self, event: Event) -> None:
        """Fold an event into the state. An observer of a server."""
        with self._changed:
            if self._fold.fold(event, self._clock()):
                self._version += 1
                self._changed.notify_all()

    @property
    def version(self) -> int:
        """A number that grows with each change."""
        return self._version

    @property
    def has_begun(self) -> bool:
        """Whether the run has begun."""
        return self._fold.status.started_s is not None

    def wait(self, version: int, timeout_s: float | None = None) -> int:
        """Wait until the version is another one, for `timeout_s` at most (None: no limit). Returns the version."""
        with self._changed:
            self._changed.wait_for(lambda: self._version != version, timeout_s)
            return self._version

    def wake(self) -> None:
        """Wake all that wait, as if something had changed."""
        with self._changed:
            self._version += 1
            self._changed.notify_all()

    def snapshot(self) -> JobStatus:
        """Return the state now. Reads the system's memory and disk, without the lock."""
        with self._changed:
            now, fold = self._clock(), self._fold
            entries, storage = list(fold.clients.values()), fold.storage
            records, begins, retries = list(fold.records)[-ROUNDS_KEPT:], dict(fold.begins), fold.retries
            status = replace(
                fold.status,
                updated_s=now,
                bytes_sent=fold.bytes_sent,
                bytes_received=fold.bytes_received,
                megabytes_per_s=0.0 if fold.status.is_over else fold.rate.megabytes_per_s(now),
                refusals=dict(fold.refusals),
                last_refusals=tuple(fold.last_refusals),
                clients_left_out=fold.left_out,
            )
        clients = []
        for entry in entries:  # one at a time: no event waits for all of them
            with self._changed:
                clients.append(entry.status(now))
        rounds = [round_status(record, begins.get(record.round)) for record in records]
        begin = begins.get(status.round)
        if not status.is_over and begin is not None and status.round > status.rounds_over:
            rounds.append(RoundStatus(status.round, "running", begin, retries=retries))
        return replace(
            status,
            time_left_s=time_left_s(status, records, begin, now),
            clients=tuple(sorted(clients, key=lambda client: client.name)),
            last_rounds=tuple(rounds[-ROUNDS_KEPT:]),
            resources=None if storage is None else probe(storage),
        )

    def timeline(self, round_number: int) -> tuple[Phase, ...]:
        """Return the phases of each client in a round, in the order in which they began; empty if it is not kept."""
        with self._changed:
            spans = self._fold.timeline.copy(round_number)
        return spans.phases()

    def timeline_rounds(self) -> tuple[int, ...]:
        """Return the numbers of the rounds that have a timeline."""
        with self._changed:
            return self._fold.timeline.rounds()

    def records(self) -> tuple[RoundRecord, ...]:
        """Return the records of the rounds that are over, in order. They do not change; do not change them."""
        with self._changed:
            return tuple(self._fold.records)
