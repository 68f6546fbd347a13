"""The registry of the server's state: connected clients and open rounds.

One lock guards it. It is held for single events, which the round's state machine answers with actions. The actions
(on disks, transports, observers, aggregators) run after the lock is released. Messages to clients enter one queue under
the lock, so that no client receives the withdrawal of an assignment before the assignment. Any thread may post an
event. The thread that opened a round waits for its end, and runs its timers.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

from flcore_transport import ClientLink, Withdrawal

from flcore.aggregation.prefetch import BackgroundThread
from flcore.aggregation.staging import Staging
from flcore.errors import FlcoreError, QuorumError, StagingError
from flcore.server.events import (
    BytesTransferred,
    ClientFailed,
    ClientJoined,
    ClientLeft,
    InvalidMetrics,
    Observer,
    TaskAnswered,
)
from flcore.server.history import Participation
from flcore.server.open_attempt import OpenAttempt
from flcore.server.task_attempt import Discard, Spill, Verdict, Withdraw
from flcore.server.timers import NEVER
from flcore.server.uploads import LOWER_LEVEL_ERRORS, PendingUpload, as_refused, refused_untimely
from flcore.text import printable

MAX_SLEEP_S = 1.0
"""How long the thread that waits for a round sleeps at most. When it wakes late, the server itself stood still."""

MAX_WAKE_DELAY_S = 0.5
"""How late it may wake; beyond that, nobody's silence counts for the time lost."""

MAX_REASON_CHARACTERS = 2_000


class FederationState:
    """All open rounds, the one that closed last, and all connected clients. `clock` never goes back; seconds."""

    def __init__(self, observe: Observer, clock: Callable[[], float] = time.monotonic) -> None:
        self._observe, self._clock = observe, clock
        self._changed = threading.Condition()
        self._links: dict[str, ClientLink] = {}
        self._attempts: dict[int, OpenAttempt] = {}
        self._last_assignment_id = 0
        self._stop_reason = ""
        self._outgoing: deque[Callable[[], None]] = deque()
        self._is_sending = False
        self._spiller = BackgroundThread()

    # What the controller's thread does.

    def next_assignment_id(self) -> int:
        """Return the number of a new round."""
        with self._changed:
            self._last_assignment_id += 1
            return self._last_assignment_id

    def wait_for_clients(self, count: int, timeout_s: float | None, among: Sequence[str] | None = None) -> list[str]:
        """Return the connected clients, sorted, once there are `count`; or raise `QuorumError`. `among`: of these."""

        def present() -> int:
            return len(self._links) if among is None else sum(client in self._links for client in among)

        with self._changed:
            self._changed.wait_for(lambda: present() >= count or self._stop_reason, timeout_s)
            if present() < count:
                why = self._stop_reason or f"after {timeout_s:g} s of waiting"
                raise QuorumError(f"{present()} of the {count} clients needed are connected", reasons=why)
            return sorted(self._links if among is None else [client for client in among if client in self._links])

    @property
    def has_stopped_waiting(self) -> bool:
        """Whether nobody else will connect."""
        return bool(self._stop_reason)

    def connected(self, among: Sequence[str] | None = None) -> set[str]:
        """Return the connected clients, or which of these are."""
        with self._changed:
            return set(self._links) if among is None else {client for client in among if client in self._links}

    def sleep(self, seconds: float) -> None:
        """Wait, unless it is given up meanwhile."""
        with self._changed:
            self._changed.wait_for(lambda: self._stop_reason, seconds)
            if self._stop_reason:
                raise QuorumError(self._stop_reason)

    def stop_waiting(self, reason: str) -> None:
        """Nobody else will connect: do not wait for more clients than are there."""
        with self._changed:
            self._stop_reason = reason
            self._changed.notify_all()

    def open(self, open_attempt: OpenAttempt) -> None:
        """Send each client its assignment."""
        attempt = open_attempt.attempt
        with self._changed:
            self._attempts = {number: each for number, each in self._attempts.items() if not each.attempt.is_closed}
            self._attempts[attempt.assignment_id] = open_attempt
            for client in attempt.clients:
                if client in self._links:
                    open_attempt.links[client] = self._links[client]
                    self._outgoing.append(partial(self._links[client].send, open_attempt.assignments[client]))
                else:
                    attempt.disconnected(client, self._clock())
        self._flush_outgoing()

    def wait_until_closed(self, open_attempt: OpenAttempt, staging: Staging) -> None:
        """Wait until a round has closed, and run its timers until then."""
        attempt = open_attempt.attempt
        try:
            while not attempt.is_closed:
                with self._handle_event(open_attempt) as now:
                    attempt.tick(now, staging.quota.released_at)
                self._sleep_until_due(open_attempt)
        finally:
            self._finish(open_attempt)
        for client in attempt.clients:
            if client in attempt.failed:
                self._observe(ClientFailed(open_attempt.task, client, attempt.failed[client]))

    def _sleep_until_due(self, open_attempt: OpenAttempt) -> None:
        """Wait until something is due or the round has closed, and notice if the server stood still meanwhile."""
        attempt = open_attempt.attempt
        with self._changed:
            if attempt.is_closed:
                return
            now = self._clock()
            open_attempt.wakes_at = min(now + MAX_SLEEP_S, max(now, attempt.due_at))
            self._changed.wait(open_attempt.wakes_at - now)
            self._credit_lost_time(open_attempt, self._clock())
            open_attempt.wakes_at = NEVER

    def _credit_lost_time(self, open_attempt: OpenAttempt, now: float) -> None:
        """Give every client the time by which the waiting thread wakes too late: the server itself stood still.

        The first thread that runs again sees to it, before a deadline that has passed meanwhile fails anybody.
        """
        late = now - open_attempt.wakes_at
        if late > MAX_WAKE_DELAY_S:
            open_attempt.attempt.pause(late)
            open_attempt.wakes_at = now

    def _finish(self, open_attempt: OpenAttempt) -> None:
        """Close a round: it accepts nothing any more."""
        with self._handle_event(open_attempt):
            open_attempt.attempt.abandon()
        open_attempt.free_model()

    # What transports report.

    def client_connected(self, client: str, link: ClientLink) -> None:
        """A client has connected; send it the assignments that it has not answered."""
        with self._changed:
            self._links[client] = link
            for number in sorted(self._attempts):
                open_attempt = self._attempts[number]
                if client in open_attempt.assignments and open_attempt.attempt.verdict_for(client) is Verdict.ACCEPTED:
                    open_attempt.links[client] = link
                    open_attempt.attempt.connected(client)
                    self._outgoing.append(partial(link.send, open_attempt.assignments[client]))
            connected = len(self._links)
            self._changed.notify_all()
        self._flush_outgoing()
        self._observe(ClientJoined(client, connected))

    def client_disconnected(self, client: str) -> None:
        """The client cannot be reached any more."""
        with self._changed:
            self._links.pop(client, None)
            for open_attempt in self._attempts.values():
                open_attempt.attempt.disconnected(client, self._clock())
            connected = len(self._links)
            self._changed.notify_all()
        self._observe(ClientLeft(client, connected))

    def require_attempt(self, client: str, number: int, *also_allowed: Verdict) -> OpenAttempt:
        """Return the round of an assignment that the client may still work on, or raise `Refused`."""
        with self._changed:
            open_attempt = self._attempts.get(number)
            if open_attempt is None:
                verdict = Verdict.STALE if 0 < number <= self._last_assignment_id else Verdict.NOT_ASKED
            else:
                verdict = open_attempt.attempt.verdict_for(client)
        if open_attempt is None or verdict not in (Verdict.ACCEPTED, Verdict.COMMITTING, *also_allowed):
            raise refused_untimely(client, verdict)
        return open_attempt

    def piece_sent(self, open_attempt: OpenAttempt, client: str, nbytes: int, *, is_last: bool) -> None:
        """A piece of the model went out."""
        with self._handle_event(open_attempt) as now:
            open_attempt.attempt.piece_sent(client, nbytes, now, is_last=is_last)
        self._observe(BytesTransferred(nbytes, 0))

    def download_queued(self, open_attempt: OpenAttempt, client: str) -> None:
        """A client's reading waits for its turn."""
        with self._handle_event(open_attempt):
            open_attempt.attempt.download_queued(client)

    def find_upload(self, open_attempt: OpenAttempt, client: str, key: str) -> PendingUpload | None:
        """Return an answer that has begun or is in; None for one that is new, or `Refused` where another one is in."""
        with self._changed:
            upload: PendingUpload | None = open_attempt.attempt.find_upload(client, key)
            answered: PendingUpload | None = open_attempt.attempt.answers.get(client)
        if answered is not None and answered.key != key:
            raise refused_untimely(client, Verdict.DUPLICATE)
        return answered or upload

    def begin_upload(self, open_attempt: OpenAttempt, announced: PendingUpload) -> PendingUpload:
        """A stream of an answer begins; or raise `Refused`. One that is in, or is being committed, may come again.

        Returns the upload that it carries: that of another stream, if the same answer was announced twice at once.
        """
        attempt, client = open_attempt.attempt, announced.client
        with self._handle_event(open_attempt) as now:
            upload: PendingUpload = attempt.find_upload(client, announced.key) or announced
            verdict = attempt.begin_upload(client, upload.key, upload, now, is_staged=upload.staged is not None)
            is_welcome = upload.participation is not None or attempt.is_current(client, upload)
        if upload is not announced or not is_welcome:
            announced.discard()
        if not is_welcome:
            raise refused_untimely(client, verdict)
        return upload

    def verdict_for(self, open_attempt: OpenAttempt, upload: PendingUpload) -> Verdict:
        """Say what a piece of an answer would be."""
        with self._changed:
            verdict = open_attempt.attempt.verdict_for(upload.client)
            is_held = open_attempt.attempt.is_current(upload.client, upload)
        return Verdict.FAILED if verdict is Verdict.ACCEPTED and not is_held else verdict

    def memory_requested(self, open_attempt: OpenAttempt, upload: PendingUpload) -> None:
        """Pieces could come."""
        with self._handle_event(open_attempt) as now:
            open_attempt.attempt.memory_requested(upload.client, upload, now)

    def memory_granted(self, open_attempt: OpenAttempt, upload: PendingUpload) -> None:
        """Memory for the pieces was granted."""
        with self._handle_event(open_attempt) as now:
            open_attempt.attempt.memory_granted(upload.client, upload, now)

    def upload_call_ended(self, open_attempt: OpenAttempt, upload: PendingUpload) -> None:
        """The call that carried an answer has ended, for now or for good."""
        with self._handle_event(open_attempt) as now:
            open_attempt.attempt.upload_call_ended(upload.client, upload, now)

    def piece_received(self, open_attempt: OpenAttempt, upload: PendingUpload, nbytes: int) -> None:
        """A piece is in."""
        with self._handle_event(open_attempt) as now:
            open_attempt.attempt.piece_received(upload.client, upload, nbytes, now, is_last=upload.inbox.is_complete)
        self._observe(BytesTransferred(0, nbytes))

    def fail(
        self,
        open_attempt: OpenAttempt,
        client: str,
        reason: str,
        *,
        upload: PendingUpload | None = None,
        is_at_fault: bool = True,
    ) -> None:
        """The client will not answer; or `upload` will not, which changes nothing where another took its place."""
        with self._handle_event(open_attempt):
            if upload is None or open_attempt.attempt.is_current(client, upload):
                open_attempt.attempt.fail(client, printable(reason, MAX_REASON_CHARACTERS), is_at_fault=is_at_fault)

    def commit(self, open_attempt: OpenAttempt, upload: PendingUpload) -> None:
        """Make an answer count, once; a second time it counts already. The aggregator works without the lock."""
        client, attempt = upload.client, open_attempt.attempt
        with self._handle_event(open_attempt):
            self._changed.wait_for(lambda: attempt.verdict_for(client) is not Verdict.COMMITTING)
            verdict = attempt.begin_commit(client, upload)
        if verdict is Verdict.DUPLICATE:
            return
        if verdict is not Verdict.ACCEPTED:
            raise refused_untimely(client, verdict)
        try:
            if open_attempt.aggregator is not None and upload.staged is not None:
                open_attempt.aggregator.commit(upload.staged)
        except BaseException as error:
            with self._handle_event(open_attempt):
                attempt.commit_failed(client, printable(str(error), MAX_REASON_CHARACTERS))
                self._changed.notify_all()
            if isinstance(error, FlcoreError) and not isinstance(error, LOWER_LEVEL_ERRORS):
                raise as_refused(error) from error
            raise
        with self._handle_event(open_attempt) as now:
            upload.participation = Participation(
                upload.message.weight, upload.metrics, upload.bytes, now - attempt.opened_at
            )
            attempt.committed(client)
            self._changed.notify_all()  # another stream of the same answer may wait for this
        self._observe(TaskAnswered(open_attempt.task, client))
        if upload.invalid_metrics:
            self._observe(InvalidMetrics(open_attempt.task, client, upload.invalid_metrics))

    @contextmanager
    def _handle_event(self, open_attempt: OpenAttempt) -> Iterator[float]:
        """Hold the lock for one event, which is told the time; then do what the round asks for."""
        attempt = open_attempt.attempt
        try:
            with self._changed:
                now = self._clock()
                self._credit_lost_time(open_attempt, now)
                try:
                    yield now
                finally:
                    actions = attempt.pop_actions()
                    for action in actions:
                        if isinstance(action, Withdraw):
                            self._release_client(open_attempt, action.client)
                    if attempt.is_closed or attempt.due_at < open_attempt.wakes_at:
                        self._changed.notify_all()
        finally:
            for action in actions:
                if isinstance(action, Spill):
                    self._spiller.submit(partial(self._spill, open_attempt, action))
                elif isinstance(action, Discard):
                    action.upload.discard()
            self._flush_outgoing()

    def _release_client(self, open_attempt: OpenAttempt, client: str) -> None:
        link = open_attempt.links.get(client)
        if link is not None:
            self._outgoing.append(partial(link.cancel_transfers, open_attempt.attempt.assignment_id))
            self._outgoing.append(partial(link.send, Withdrawal(open_attempt.attempt.assignment_id)))

    def _spill(self, open_attempt: OpenAttempt, action: Spill) -> None:
        """Bring an update to disk, on a thread of its own: a disk may be slow, and timers do not wait for it."""
        try:
            action.upload.staged.spill()
        except StagingError as error:
            self.fail(open_attempt, action.client, str(error), upload=action.upload, is_at_fault=False)

    def _flush_outgoing(self) -> None:
        """Send the queued messages to clients, first in, first out, for all threads."""
        while True:
            with self._changed:
                if self._is_sending or not self._outgoing:
                    return
                self._is_sending, send = True, self._outgoing.popleft()
            try:
                send()
            finally:
                with self._changed:
                    self._is_sending = False
