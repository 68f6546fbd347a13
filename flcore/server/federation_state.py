"""The state of a federation: connected clients and open attempts, behind one lock.

The lock is held for single events, which an attempt's state machine answers with actions. Slow work (disks, transports,
observers, commits) runs after the lock is released. Messages to clients are queued under the lock and sent in that
order, so no client receives the withdrawal of an assignment before the assignment.

Transports post events from any thread. The thread that opened an attempt waits until it has closed, and runs its
timers meanwhile.
"""

import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

from flcore_transport import ClientLink, Withdrawal

from flcore.aggregation.kept_staging import KeptStaging
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
from flcore.server.open_attempt import MAX_SLEEP_S, OpenAttempt
from flcore.server.outgoing_messages import OutgoingMessages
from flcore.server.task_attempt import ABANDONED, Discard, Spill, Verdict, Withdraw
from flcore.server.uploads import LOWER_LEVEL_ERRORS, PendingUpload, as_refused, failure_reason, refused_untimely
from flcore.text import printable

MAX_REASON_CHARACTERS = 2_000


class FederationState:
    """The connected clients and all open attempts. A closed one stays until the next opens, to refuse late answers.

    Order of locks: `PendingUpload.lock`, then the lock of this object, then that of `OutgoingMessages`. No other lock
    is taken while it is held.

    Args:
        observe: Receives the events of the run. Called without the lock.
        clock: A monotonic clock in seconds.
        first_assignment_id: Ids of assignments begin behind this number.
    """

    def __init__(
        self, observe: Observer, clock: Callable[[], float] = time.monotonic, first_assignment_id: int = 0
    ) -> None:
        self._observe, self._clock = observe, clock
        # The lock; notified when clients come and go, when an attempt closes or has an earlier timer, after commits.
        self._changed = threading.Condition()
        self._links: dict[str, ClientLink] = {}
        self._attempts: dict[int, OpenAttempt] = {}
        self._last_assignment_id = first_assignment_id
        self._stop_reason = ""
        self._end: FlcoreError | None = None
        self._outgoing, self._spiller = OutgoingMessages(), BackgroundThread()

    # Called by the controller's thread.

    def next_assignment_id(self) -> int:
        """Return the assignment id of a new attempt."""
        with self._changed:
            self._last_assignment_id += 1
            return self._last_assignment_id

    def wait_for_clients(self, count: int, timeout_s: float | None, among: Sequence[str] | None = None) -> list[str]:
        """Wait until `count` clients, of all or `among` some, are connected; return their names, sorted.

        Raises `QuorumError` after `timeout_s` (None: never), or when `stop_waiting` is called.
        """
        with self._changed:
            until = math.inf if timeout_s is None else self._clock() + timeout_s
            while len(self._connected(among)) < count and not self._stop_reason and (now := self._clock()) < until:
                # Not longer at once: a signal that comes just before the main thread waits is handled after the wait.
                self._changed.wait(min(MAX_SLEEP_S, until - now))
            connected = self._connected(among)
            if len(connected) < count:
                text = f"{len(connected)} of the {count} clients needed are connected"
                raise self._end or QuorumError(text, reasons=self._stop_reason or f"after {timeout_s:g} s of waiting")
            return sorted(connected)

    def connected_clients(self, among: Sequence[str] | None = None) -> set[str]:
        """Return the names of the connected clients, or of the connected ones among some."""
        with self._changed:
            return self._connected(among)

    def _connected(self, among: Sequence[str] | None) -> set[str]:
        return set(self._links) if among is None else {client for client in among if client in self._links}

    @property
    def has_stopped_waiting(self) -> bool:
        """Whether `stop_waiting` was called."""
        return bool(self._stop_reason)

    def sleep(self, seconds: float) -> None:
        """Sleep. Raises `QuorumError` as soon as `stop_waiting` is called."""
        with self._changed:
            self._changed.wait_for(lambda: self._stop_reason, seconds)
            if self._stop_reason:
                raise self._end or QuorumError(self._stop_reason)

    def stop_waiting(self, reason: str, error: FlcoreError | None = None) -> None:
        """No more clients will connect: end all waits for clients with this reason. May be called from any thread.

        With `error` the job ends: all its waits, and its next call of the controller, raise it.
        """
        with self._changed:
            self._stop_reason, self._end = reason, self._end or error
            self._changed.notify_all()

    def raise_if_ended(self) -> None:
        """Raise the error with which the job was ended, if it was."""
        if self._end is not None:
            raise self._end

    def open(self, open_attempt: OpenAttempt) -> None:
        """Send each client its assignment. Clients that are not connected receive it when they connect."""
        attempt = open_attempt.attempt
        with self._changed:
            open_attempt.wakes_at = attempt.opened_at + MAX_SLEEP_S  # its first sleep has begun by then
            self._attempts = {key: each for key, each in self._attempts.items() if not each.attempt.is_closed}
            self._attempts[attempt.assignment_id] = open_attempt
            for client in attempt.clients:
                if client in self._links:
                    open_attempt.links[client] = self._links[client]
                    self._outgoing.append(partial(self._links[client].send, open_attempt.assignments[client]))
                else:
                    attempt.disconnected(client, self._clock())
        self._outgoing.flush()

    def wait_until_closed(self, open_attempt: OpenAttempt, staging: Staging | KeptStaging) -> None:
        """Wait until an attempt has closed, and run its timers until then. An exception closes it."""
        attempt = open_attempt.attempt
        try:
            while not attempt.is_closed:
                self.raise_if_ended()
                with self._handle_event(open_attempt) as now:
                    attempt.tick(now, staging.quota.released_at)
                self._sleep_until_due(open_attempt)
        finally:
            self._close(open_attempt)
        with self._changed:  # the record of the round may need the space of an update that another thread discards
            self._changed.wait_for(lambda: not open_attempt.actions_under_way)

    def _sleep_until_due(self, open_attempt: OpenAttempt) -> None:
        """Sleep until a timer is due or the attempt has closed, for `MAX_SLEEP_S` at most."""
        attempt = open_attempt.attempt
        with self._changed:
            if attempt.is_closed:
                return
            open_attempt.compensate_suspension(now := self._clock())
            open_attempt.wakes_at = min(now + MAX_SLEEP_S, max(now, attempt.due_at))
            self._changed.wait(open_attempt.wakes_at - now)
            open_attempt.compensate_suspension(now := self._clock())
            open_attempt.wakes_at = now + MAX_SLEEP_S  # it works, for less than it sleeps at most

    def _close(self, open_attempt: OpenAttempt) -> None:
        """Close an attempt if it is open: it accepts no more answers. Free its model."""
        with self._handle_event(open_attempt):
            open_attempt.attempt.abandon()
        open_attempt.free_model()

    # Called by transports, from any thread.

    def client_connected(self, client: str, link: ClientLink) -> None:
        """A client has connected: send it the open assignments that it has not answered."""
        with self._changed:
            self._links[client] = link
            for assignment_id in sorted(self._attempts):
                open_attempt = self._attempts[assignment_id]
                if client in open_attempt.assignments and open_attempt.attempt.verdict_for(client) is Verdict.ACCEPTED:
                    open_attempt.links[client] = link
                    open_attempt.attempt.connected(client)
                    self._outgoing.append(partial(link.send, open_attempt.assignments[client]))
            connected = len(self._links)
            self._changed.notify_all()
        self._outgoing.flush()
        self._observe(ClientJoined(client, connected))

    def client_disconnected(self, client: str) -> None:
        """A client has disconnected. It fails in its open attempts unless it connects again within the grace period."""
        with self._changed:
            self._links.pop(client, None)
            for open_attempt in self._attempts.values():
                open_attempt.attempt.disconnected(client, self._clock())
            connected = len(self._links)
            self._changed.notify_all()
        self._observe(ClientLeft(client, connected))

    def require_attempt(self, client: str, assignment_id: int, *also_allowed: Verdict) -> OpenAttempt:
        """Return the attempt of an assignment that the client may still work on, or raise `Refused`."""
        with self._changed:
            open_attempt = self._attempts.get(assignment_id)
            if open_attempt is None:
                was_assigned = 0 < assignment_id <= self._last_assignment_id
                verdict = Verdict.STALE if was_assigned else Verdict.NOT_ASKED
            else:
                verdict = open_attempt.attempt.verdict_for(client)
        if open_attempt is None or verdict not in (Verdict.ACCEPTED, Verdict.COMMITTING, *also_allowed):
            raise refused_untimely(client, verdict)
        return open_attempt

    def task_of(self, assignment_id: int) -> tuple[str, int]:
        """Return the task and the round of an assignment; empty and 0 if its attempt is not known any more."""
        with self._changed:
            open_attempt = self._attempts.get(assignment_id)
        return ("", 0) if open_attempt is None else (open_attempt.task, open_attempt.round)

    def piece_sent(self, open_attempt: OpenAttempt, client: str, nbytes: int, *, is_last: bool) -> None:
        """A piece of the model was sent."""
        with self._handle_event(open_attempt) as now:
            open_attempt.attempt.piece_sent(client, nbytes, now, is_last=is_last)
        self._observe(BytesTransferred(nbytes, 0, client))

    def download_queued(self, open_attempt: OpenAttempt, client: str) -> None:
        """A client's download waits for a window."""
        with self._handle_event(open_attempt):
            open_attempt.attempt.download_queued(client)

    def find_upload(self, open_attempt: OpenAttempt, client: str, key: str) -> PendingUpload | None:
        """Return the client's upload with this key, begun or committed, or None if the answer is new.

        Raises `Refused` if the client has answered with another key.
        """
        with self._changed:
            begun: PendingUpload | None = open_attempt.attempt.find_upload(client, key)
            committed: PendingUpload | None = open_attempt.attempt.answers.get(client)
        if committed is not None and committed.key != key:
            raise refused_untimely(client, Verdict.DUPLICATE)
        return committed or begun

    def begin_upload(self, open_attempt: OpenAttempt, announced: PendingUpload) -> PendingUpload:
        """Begin the upload of an announced answer, or resume it. Raises `Refused` if it cannot count.

        Returns:
            The upload that the call carries. That is an earlier one if two calls announced the same answer at once;
            then `announced` is discarded. A committed upload is returned too, so that its call gets the receipt again.
        """
        attempt, client = open_attempt.attempt, announced.client
        with self._handle_event(open_attempt) as now:
            upload: PendingUpload = attempt.find_upload(client, announced.key) or announced
            verdict = attempt.begin_upload(client, upload.key, upload, now, is_staged=upload.staged is not None)
            may_continue = upload.participation is not None or attempt.is_current(client, upload)
        if upload is not announced or not may_continue:
            announced.discard()
        if not may_continue:
            raise refused_untimely(client, verdict)
        return upload

    def verdict_for(self, open_attempt: OpenAttempt, upload: PendingUpload) -> Verdict:
        """Return the verdict for a piece of an upload."""
        with self._changed:
            return open_attempt.attempt.verdict_for_upload(upload.client, upload)

    def memory_requested(self, open_attempt: OpenAttempt, upload: PendingUpload) -> None:
        """An upload has a window, and waits for memory."""
        with self._handle_event(open_attempt) as now:
            open_attempt.attempt.memory_requested(upload.client, upload, now)

    def memory_granted(self, open_attempt: OpenAttempt, upload: PendingUpload) -> None:
        """An upload has memory for its pieces."""
        with self._handle_event(open_attempt) as now:
            open_attempt.attempt.memory_granted(upload.client, upload, now)

    def upload_call_ended(self, open_attempt: OpenAttempt, upload: PendingUpload) -> None:
        """The call that carried an upload has ended. Another one may resume the upload."""
        with self._handle_event(open_attempt) as now:
            open_attempt.attempt.upload_call_ended(upload.client, upload, now)

    def piece_received(self, open_attempt: OpenAttempt, upload: PendingUpload, nbytes: int) -> None:
        """A piece of an upload was received and stored."""
        with self._handle_event(open_attempt) as now:
            open_attempt.attempt.piece_received(upload.client, upload, nbytes, now, is_last=upload.inbox.is_complete)
        self._observe(BytesTransferred(0, nbytes, upload.client))

    def fail(
        self,
        open_attempt: OpenAttempt,
        client: str,
        reason: str,
        *,
        upload: PendingUpload | None = None,
        is_at_fault: bool = True,
    ) -> None:
        """A client has failed in an attempt. With `upload`, ignored if another upload has replaced that one."""
        with self._handle_event(open_attempt):
            if upload is None or open_attempt.attempt.is_current(client, upload):
                open_attempt.attempt.fail(client, printable(reason, MAX_REASON_CHARACTERS), is_at_fault=is_at_fault)

    def fail_everywhere(self, client: str, reason: str) -> None:
        """A client has failed in all open attempts."""
        with self._changed:
            open_attempts = [each for each in self._attempts.values() if client in each.assignments]
        for each in open_attempts:
            self.fail(each, client, reason)

    def commit(self, open_attempt: OpenAttempt, upload: PendingUpload) -> None:
        """Commit an answer once. A second call for the same answer waits for the first one, and returns.

        The lock is not held while the aggregator works: a commit may fold the whole update. The attempt does not close
        meanwhile (`TaskAttempt.begin_commit`).

        Raises:
            Refused: The answer cannot count any more, or the aggregator refused it.
        """
        client, attempt = upload.client, open_attempt.attempt
        with self._handle_event(open_attempt):
            self._changed.wait_for(lambda: attempt.verdict_for(client) is not Verdict.COMMITTING)
            verdict = attempt.begin_commit(client, upload)
        if verdict is Verdict.DUPLICATE:
            return
        if verdict is not Verdict.ACCEPTED:
            raise refused_untimely(client, verdict)
        participation = Participation(
            upload.content.weight, upload.metrics, upload.received_bytes, self._clock() - attempt.opened_at
        )
        try:
            open_attempt.commit_answer(upload, participation)
        except BaseException as error:
            # Any exception, an interrupt too, must end the commit: the attempt waits for it beyond its deadline.
            with self._handle_event(open_attempt):
                attempt.commit_failed(client, printable(failure_reason(error), MAX_REASON_CHARACTERS))
                self._changed.notify_all()
            if isinstance(error, FlcoreError) and not isinstance(error, LOWER_LEVEL_ERRORS):
                raise as_refused(error) from error
            raise
        with self._handle_event(open_attempt):
            upload.participation = participation
            attempt.committed(client)
            self._changed.notify_all()  # another call of the same answer may wait for this commit
        answered = (participation.weight, participation.bytes, upload.key)
        self._observe(TaskAnswered(open_attempt.task, client, open_attempt.round, attempt.assignment_id, *answered))
        if upload.invalid_metrics:
            self._observe(InvalidMetrics(open_attempt.task, client, upload.invalid_metrics))

    # The lock, actions and messages.

    @contextmanager
    def _handle_event(self, open_attempt: OpenAttempt) -> Iterator[float]:
        """Hold the lock for one event, and yield its time. Then perform the attempt's actions, most without the lock.

        Withdrawals only enter the queue of messages, under the lock to keep their order.
        """
        attempt = open_attempt.attempt
        try:
            with self._changed:
                now = self._clock()
                open_attempt.compensate_suspension(now)
                try:
                    yield now
                finally:
                    actions = attempt.pop_actions()
                    open_attempt.actions_under_way += len(actions)
                    for action in actions:
                        if isinstance(action, Withdraw):
                            self._withdraw_assignment(open_attempt, action.client)
                    # The waiting thread sleeps until `wakes_at`: wake it if the attempt has something to do earlier.
                    if attempt.is_closed or attempt.due_at < open_attempt.wakes_at:
                        self._changed.notify_all()
        finally:
            try:
                for action in actions:
                    if isinstance(action, Spill):
                        self._spiller.submit(partial(self._spill, open_attempt, action))
                    elif isinstance(action, Discard):
                        action.upload.discard()
                    elif attempt.failed[action.client] != ABANDONED:  # else the run's end has the reason
                        reason = attempt.failed[action.client]
                        self._observe(ClientFailed(open_attempt.task, action.client, reason, open_attempt.round))
            finally:
                if actions:
                    with self._changed:
                        open_attempt.actions_under_way -= len(actions)
                        self._changed.notify_all()
            self._outgoing.flush()

    def _withdraw_assignment(self, open_attempt: OpenAttempt, client: str) -> None:
        link = open_attempt.links.get(client)
        if link is not None:
            assignment_id = open_attempt.attempt.assignment_id
            self._outgoing.append(partial(link.cancel_transfers, assignment_id))
            self._outgoing.append(partial(link.send, Withdrawal(assignment_id)))

    def _spill(self, open_attempt: OpenAttempt, action: Spill) -> None:
        """Move an update to disk. Runs on its own thread, because timers and transports must not wait for a disk."""
        try:
            action.upload.staged.spill()
        except StagingError as error:
            self.fail(open_attempt, action.client, str(error), upload=action.upload, is_at_fault=False)
