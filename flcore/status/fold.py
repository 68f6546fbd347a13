"""Folds the events of one job's server into a state of bounded size. Pure: no lock, no clock, no file."""

from collections import OrderedDict, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from flcore.errors import Untimely
from flcore.progress import TaskProgress
from flcore.server.events import (
    AnswerRefused,
    BytesTransferred,
    CallRefused,
    ClientFailed,
    ClientJoined,
    ClientLeft,
    ClientRevoked,
    Event,
    HistoryRestored,
    JoinRefused,
    RoundFinished,
    RunContinued,
    RunEnded,
    RunEnding,
    RunStarted,
    StorageOpened,
    TaskAnswered,
    TaskRetried,
    TaskSent,
    UpdatesFolded,
    WaitingForClients,
)
from flcore.server.history import RoundRecord
from flcore.server.transfer_events import (
    DownloadBegan,
    DownloadEnded,
    TransferEvent,
    UploadBegan,
    UploadEnded,
    UploadQueued,
)
from flcore.status.client_entry import OUT_PHASES, ClientEntry, count_kind, short_reason
from flcore.status.job_status import JOIN_KIND, REVOKED_KIND, JobStatus, Refusal
from flcore.status.rate import Rate
from flcore.status.rounds import shown_metrics
from flcore.status.timeline import ROUNDS_KEPT, PhaseName, Timeline
from flcore.text import printable

MAX_CLIENTS = 1_000
"""The most clients on a board. A new one takes the place of the one that left first."""

MAX_REFUSALS = 50
"""The last refusals that a board keeps, with their reasons."""

MAX_RECORDS = 10_000
"""The rounds whose records a board keeps. They are the run's own records, and no copies."""

NAME_CHARACTERS = 64


class JobFold:
    """The state of one job after some events. `StatusBoard` adds the lock, the clock and the snapshot.

    Attributes:
        status: The state, without what a snapshot adds: clients, rounds, bytes, refusals, resources.
        clients: The clients, by name.
        left_out: The number of clients that there was no room for.
        bytes_sent: Bytes of all pieces that were sent.
        bytes_received: Bytes of all pieces that were received.
        rate: The rate of both.
        refusals: The number of refusals by kind.
        last_refusals: The last refusals.
        records: The records of the rounds that are over.
        begins: When each of the last rounds began.
        retries: The number of retries in the present round.
        storage: The server's storage while it runs.
        timeline: The phases of the clients in the last rounds.
    """

    def __init__(self, status: JobStatus, clients: Sequence[str], now: float) -> None:
        self.status = status
        self.clients = {name: ClientEntry(name) for name in clients[:MAX_CLIENTS]}
        self.left_out = max(0, len(clients) - MAX_CLIENTS)
        self._invited = frozenset(clients)
        self._away: OrderedDict[str, None] = OrderedDict()  # clients that may be forgotten, the first to leave first
        self.bytes_sent = self.bytes_received = 0
        self.rate = Rate(now)
        self.refusals: dict[str, int] = {}
        self.last_refusals: deque[Refusal] = deque(maxlen=MAX_REFUSALS)
        self.records: deque[RoundRecord] = deque(maxlen=MAX_RECORDS)
        self.begins: OrderedDict[int, float] = OrderedDict()
        self.retries = 0
        self.storage: StorageOpened | None = None
        self.timeline = Timeline()
        self._is_ending = False
        self._handlers: Mapping[type, Callable[..., None]] = {
            AnswerRefused: self._answer_refused,
            BytesTransferred: self._bytes_transferred,
            CallRefused: self._call_refused,
            ClientFailed: self._client_failed,
            ClientJoined: self._client_joined,
            ClientLeft: self._client_left,
            ClientRevoked: self._client_revoked,
            DownloadBegan: self._download_began,
            DownloadEnded: self._download_ended,
            HistoryRestored: self._history_restored,
            JoinRefused: self._join_refused,
            RoundFinished: self._round_finished,
            RunContinued: self._run_continued,
            RunEnded: self._run_ended,
            RunEnding: self._run_ending,
            RunStarted: self._run_started,
            StorageOpened: self._storage_opened,
            TaskAnswered: self._task_answered,
            TaskProgress: self._task_progress,
            TaskRetried: self._task_retried,
            TaskSent: self._task_sent,
            UpdatesFolded: self._updates_folded,
            UploadBegan: self._upload_began,
            UploadEnded: self._upload_ended,
            UploadQueued: self._upload_queued,
            WaitingForClients: self._waiting_for_clients,
        }

    def fold(self, event: Event, now: float) -> bool:
        """Fold an event that came at `now` into the state. Returns whether it is an event of the board."""
        handle = self._handlers.get(type(event))
        if handle is None:
            return False
        handle(event, now)
        return True

    # The run.

    def _set(self, **fields: object) -> None:
        self.status = replace(self.status, **fields)  # type: ignore[arg-type]

    def _run_started(self, event: RunStarted, now: float) -> None:
        self._is_ending = False
        self._set(id=self.status.id or event.run, run=event.run, started_s=now)

    def _run_continued(self, event: RunContinued, _: float) -> None:
        self._set(rounds_over=event.rounds, round=event.rounds, rounds=event.total_rounds)

    def _history_restored(self, event: HistoryRestored, _: float) -> None:
        self.records.extend(event.records)
        if event.records:
            self._set(metrics=shown_metrics(event.records[-1]))

    def _storage_opened(self, event: StorageOpened, _: float) -> None:
        self.storage = event

    def _waiting_for_clients(self, event: WaitingForClients, _: float) -> None:
        names = ", ".join(printable(name, NAME_CHARACTERS) for name in event.missing[:10])
        missing = f"; not there: {names}" + (" and others" if len(event.missing) > 10 else "") if names else ""
        reason = f"{event.connected} of the {event.needed} clients needed are connected{missing}"
        self._set(state="waiting", reason=short_reason(reason), connected=event.connected)

    def _run_ending(self, _: RunEnding, __: float) -> None:
        self._is_ending = True

    def _run_ended(self, event: RunEnded, now: float) -> None:
        self._end_phases(now)
        for entry in self.clients.values():  # their sessions end with the run; the last events of them may come later
            entry.is_connected = False
        self.storage = None  # its probe is for a server that runs
        reason = "" if event.end == "done" else event.cause or event.reason
        self._set(state=event.end, reason=short_reason(reason), ended_s=now, connected=0)

    def _round_finished(self, event: RoundFinished, now: float) -> None:
        record = event.record
        while self.records and self.records[-1].round >= record.round:
            self.records.pop()  # a round that was made again after a restart
        self.records.append(record)
        self._end_phases(now)
        self._set(rounds_over=record.round, round=record.round, metrics=shown_metrics(record))

    def _end_phases(self, now: float) -> None:
        for entry in self.clients.values():
            entry.end_phase(self.timeline, now)
            entry.end_transfer(now)

    # Tasks.

    def _task_sent(self, event: TaskSent, now: float) -> None:
        if event.round not in self.begins:
            self.begins[event.round], self.retries = now, 0
            while len(self.begins) > ROUNDS_KEPT:
                self.begins.popitem(last=False)
        self._set(state="running", reason="", round=event.round, task=event.task, asked=event.client_count, answered=0)
        for client in event.clients:
            entry = self.clients.get(client)
            if entry is not None:
                entry.assign(event.task, event.round, event.payload_id, self.timeline, now)

    def _task_retried(self, event: TaskRetried, _: float) -> None:
        self.retries += 1
        reason = f"{event.answers} of the {event.quorum} answers needed are in; retry {event.attempt}"
        self._set(reason=f"{reason} of {event.attempts} in {event.delay_s:g} s")

    def _task_answered(self, event: TaskAnswered, now: float) -> None:
        if (event.task, event.round) == (self.status.task, self.status.round):
            self._set(answered=self.status.answered + 1)
        entry = self.clients.get(event.client)
        if entry is not None:
            entry.answers += 1
            entry.last_seen = now
            entry.end_transfer(now)
            if entry.is_at(event.task, event.round) and entry.is_pending:
                entry.is_pending = False
                entry.enter("checked", self.timeline, now)

    def _updates_folded(self, event: UpdatesFolded, now: float) -> None:
        for client in event.clients:
            entry = self.clients.get(client)
            if entry is not None and entry.is_at(event.task, event.round):
                entry.is_pending = False
                entry.enter("folded", self.timeline, now)

    def _task_progress(self, event: TaskProgress, now: float) -> None:
        entry = self.clients.get(event.client)
        if entry is not None and 0 <= event.done <= event.total and event.total > 0:  # a site may report any numbers
            entry.progress, entry.last_seen = min(1.0, event.done / event.total), now
            if entry.is_at(event.task, event.round) and entry.is_pending and entry.phase == "queued":
                entry.enter("training", self.timeline, now)

    # Transfers.

    def _bytes_transferred(self, event: BytesTransferred, now: float) -> None:
        self.rate.add(event.sent + event.received, now)
        self.bytes_sent += event.sent
        self.bytes_received += event.received
        entry = self.clients.get(event.client)
        if entry is not None:
            entry.add_bytes(event.sent, event.received, now)

    def _download_began(self, event: DownloadBegan, now: float) -> None:
        self._begin_transfer(event, "downloading", now)

    def _download_ended(self, event: DownloadEnded, now: float) -> None:
        entry = self.clients.get(event.client)
        if entry is not None and entry.is_at(event.task, event.round):
            entry.end_transfer(now)
            entry.payload_id = entry.assigned_payload_id
            if entry.is_pending:
                entry.enter("training", self.timeline, now)

    def _upload_queued(self, event: UploadQueued, now: float) -> None:
        entry = self._pending(event)
        if entry is not None:
            entry.progress, entry.last_seen = None, now
            entry.enter("queued", self.timeline, now)

    def _upload_began(self, event: UploadBegan, now: float) -> None:
        self._begin_transfer(event, "uploading", now)

    def _upload_ended(self, event: UploadEnded, now: float) -> None:
        entry = self._pending(event)
        if entry is not None:
            entry.end_transfer(now)
            entry.enter("checked", self.timeline, now)

    def _begin_transfer(self, event: DownloadBegan | UploadBegan, phase: PhaseName, now: float) -> None:
        entry = self._pending(event)
        if entry is not None:
            entry.last_seen = now
            entry.begin_transfer(now)
            entry.enter(phase, self.timeline, now)

    def _pending(self, event: TransferEvent) -> ClientEntry | None:
        """Return the client of a transfer, if the transfer is of its present task."""
        entry = self.clients.get(event.client)
        return entry if entry is not None and entry.is_pending and entry.is_at(event.task, event.round) else None

    # Clients.

    def _client_joined(self, event: ClientJoined, now: float) -> None:
        self._set(connected=event.connected)
        entry = self.clients.get(event.client) or self._add(event.client)
        if entry is not None:
            self._away.pop(event.client, None)
            entry.is_connected, entry.last_seen = True, now
            if entry.is_pending and entry.phase == "lost":
                entry.enter(entry.kept_phase, self.timeline, now)

    def _add(self, client: str) -> ClientEntry | None:
        """Return a new entry, in place of the client that left first if need be; None if there is no room for it."""
        if len(self.clients) >= MAX_CLIENTS:
            self.left_out += 1
            if not self._away:
                return None
            del self.clients[self._away.popitem(last=False)[0]]
        entry = self.clients[client] = ClientEntry(printable(client, NAME_CHARACTERS))
        return entry

    def _client_left(self, event: ClientLeft, now: float) -> None:
        if self.status.is_over:
            return
        self._set(connected=event.connected)
        entry = self.clients.get(event.client)
        if entry is None:
            return
        entry.is_connected = False
        entry.end_transfer(now)
        if entry.is_pending and not self._is_ending:  # else its session ends with the run, and no connection was lost
            kept = entry.phase
            entry.kept_phase = kept if kept in ("training", "queued") else entry.kept_phase
            entry.last_reason = "its connection was lost"
            entry.enter("lost", self.timeline, now)
        if event.client not in self._invited:
            self._away[event.client] = None

    def _client_failed(self, event: ClientFailed, now: float) -> None:
        entry = self.clients.get(event.client)
        if entry is None:
            return
        entry.failures += 1
        entry.last_reason = short_reason(event.reason)
        if entry.task == event.task and event.round in (0, entry.round):
            entry.is_pending = False
            entry.end_transfer(now)
            if entry.phase not in OUT_PHASES:
                entry.enter("failed" if entry.is_connected else "lost", self.timeline, now)

    def _client_revoked(self, event: ClientRevoked, now: float) -> None:
        self._refuse(Refusal(now, event.client, REVOKED_KIND, event.reason))

    # Refusals.

    def _answer_refused(self, event: AnswerRefused, now: float) -> None:
        self._refuse(Refusal(now, event.client, event.kind, event.reason, event.task, event.round))
        entry = self.clients.get(event.client)
        if entry is None or event.kind == Untimely.kind or not entry.is_at(event.task, event.round):
            return
        if entry.is_pending or entry.phase in OUT_PHASES:  # its failure comes before or after its refusal
            entry.end_transfer(now)
            entry.enter("refused", self.timeline, now)

    def _call_refused(self, event: CallRefused, now: float) -> None:
        self._refuse(Refusal(now, event.client, event.kind, event.reason))

    def _join_refused(self, event: JoinRefused, now: float) -> None:
        self._refuse(Refusal(now, event.client, JOIN_KIND, event.reason))

    def _refuse(self, refusal: Refusal) -> None:
        """Count a refusal. A client that is not on the board gets no place by it: anybody can be refused."""
        kind, reason = printable(refusal.kind, NAME_CHARACTERS), short_reason(refusal.reason)
        client, task = printable(refusal.client, NAME_CHARACTERS), printable(refusal.task, NAME_CHARACTERS)
        self.last_refusals.append(replace(refusal, client=client, kind=kind, reason=reason, task=task))
        count_kind(self.refusals, kind)
        entry = self.clients.get(refusal.client)
        if entry is not None:
            count_kind(entry.refusals, kind)
            entry.last_reason = reason
