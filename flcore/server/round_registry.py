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
from flcore.server.open_round import OpenRound
from flcore.server.task_round import Discard, Release, Spill, Verdict
from flcore.server.timers import NEVER
from flcore.server.uploads import LOWER_LEVEL_ERRORS, PendingUpload, refusal_for, untimely_refusal
from flcore.text import printable

MAX_SLEEP_S = 1.0
"""How long the thread that waits for a round sleeps at most. When it wakes late, the server itself stood still."""

MAX_WAKE_DELAY_S = 0.5
"""How late it may wake; beyond that, nobody's silence counts for the time lost."""

MAX_REASON_CHARACTERS = 2_000


class RoundRegistry:
    """All open rounds, the one that closed last, and all connected clients. `clock` never goes back; seconds."""

    def __init__(self, observe: Observer, clock: Callable[[], float] = time.monotonic) -> None:
        self._observe, self._clock = observe, clock
        self._changed = threading.Condition()
        self._links: dict[str, ClientLink] = {}
        self._rounds: dict[int, OpenRound] = {}
        self._last_number = 0
        self._give_up_reason = ""
        self._outgoing: deque[Callable[[], None]] = deque()
        self._is_sending = False
        self._spiller = BackgroundThread()

    # What the controller's thread does.

    def next_number(self) -> int:
        """Return the number of a new round."""
        with self._changed:
            self._last_number += 1
            return self._last_number

    def wait_for_clients(self, count: int, timeout_s: float | None, among: Sequence[str] | None = None) -> list[str]:
        """Return the connected clients, sorted, once there are `count`; or raise `QuorumError`. `among`: of these."""

        def present() -> int:
            return len(self._links) if among is None else sum(client in self._links for client in among)

        with self._changed:
            self._changed.wait_for(lambda: present() >= count or self._give_up_reason, timeout_s)
            if present() < count:
                why = self._give_up_reason or f"after {timeout_s:g} s of waiting"
                raise QuorumError(f"{present()} of the {count} clients needed are connected", reasons=why)
            return sorted(self._links if among is None else [client for client in among if client in self._links])

    @property
    def is_given_up(self) -> bool:
        """Whether nobody else will connect."""
        return bool(self._give_up_reason)

    def connected(self, among: Sequence[str] | None = None) -> set[str]:
        """Return the connected clients, or which of these are."""
        with self._changed:
            return set(self._links) if among is None else {client for client in among if client in self._links}

    def sleep(self, seconds: float) -> None:
        """Wait, unless it is given up meanwhile."""
        with self._changed:
            self._changed.wait_for(lambda: self._give_up_reason, seconds)
            if self._give_up_reason:
                raise QuorumError(self._give_up_reason)

    def give_up(self, reason: str) -> None:
        """Nobody else will connect: do not wait for more clients than are there."""
        with self._changed:
            self._give_up_reason = reason
            self._changed.notify_all()

    def open(self, open_round: OpenRound) -> None:
        """Send each client its assignment."""
        state = open_round.state
        with self._changed:
            self._rounds = {number: each for number, each in self._rounds.items() if not each.state.is_closed}
            self._rounds[state.number] = open_round
            for client in state.clients:
                if client in self._links:
                    open_round.links[client] = self._links[client]
                    self._outgoing.append(partial(self._links[client].send, open_round.assignments[client]))
                else:
                    state.disconnected(client, self._clock())
        self._flush_outgoing()

    def wait_until_closed(self, open_round: OpenRound, staging: Staging) -> None:
        """Wait until a round has closed, and run its timers until then."""
        state = open_round.state
        try:
            while not state.is_closed:
                with self._handle_event(open_round) as now:
                    state.tick(now, staging.quota.released_at)
                self._sleep_until_due(open_round)
        finally:
            self._finish(open_round)
        for client in state.clients:
            if client in state.failed:
                self._observe(ClientFailed(open_round.task, client, state.failed[client]))

    def _sleep_until_due(self, open_round: OpenRound) -> None:
        """Wait until something is due or the round has closed, and notice if the server stood still meanwhile."""
        state = open_round.state
        with self._changed:
            if state.is_closed:
                return
            now = self._clock()
            open_round.wakes_at = min(now + MAX_SLEEP_S, max(now, state.due_at))
            self._changed.wait(open_round.wakes_at - now)
            self._credit_lost_time(open_round, self._clock())
            open_round.wakes_at = NEVER

    def _credit_lost_time(self, open_round: OpenRound, now: float) -> None:
        """Give every client the time by which the waiting thread wakes too late: the server itself stood still.

        The first thread that runs again sees to it, before a deadline that has passed meanwhile fails anybody.
        """
        late = now - open_round.wakes_at
        if late > MAX_WAKE_DELAY_S:
            open_round.state.pause(late)
            open_round.wakes_at = now

    def _finish(self, open_round: OpenRound) -> None:
        """Close a round: it accepts nothing any more."""
        with self._handle_event(open_round):
            open_round.state.abandon()
        open_round.release_model()

    # What transports report.

    def client_connected(self, client: str, link: ClientLink) -> None:
        """A client has connected; send it the assignments that it has not answered."""
        with self._changed:
            self._links[client] = link
            for number in sorted(self._rounds):
                open_round = self._rounds[number]
                if client in open_round.assignments and open_round.state.verdict_for(client) is Verdict.ACCEPTED:
                    open_round.links[client] = link
                    open_round.state.connected(client)
                    self._outgoing.append(partial(link.send, open_round.assignments[client]))
            connected = len(self._links)
            self._changed.notify_all()
        self._flush_outgoing()
        self._observe(ClientJoined(client, connected))

    def client_disconnected(self, client: str) -> None:
        """The client cannot be reached any more."""
        with self._changed:
            self._links.pop(client, None)
            for open_round in self._rounds.values():
                open_round.state.disconnected(client, self._clock())
            connected = len(self._links)
            self._changed.notify_all()
        self._observe(ClientLeft(client, connected))

    def require_round(self, client: str, number: int, *also_allowed: Verdict) -> OpenRound:
        """Return the round of an assignment that the client may still work on, or raise `Refused`."""
        with self._changed:
            open_round = self._rounds.get(number)
            if open_round is None:
                verdict = Verdict.STALE if 0 < number <= self._last_number else Verdict.NOT_ASKED
            else:
                verdict = open_round.state.verdict_for(client)
        if open_round is None or verdict not in (Verdict.ACCEPTED, Verdict.COMMITTING, *also_allowed):
            raise untimely_refusal(client, verdict)
        return open_round

    def task_of(self, number: int) -> tuple[str, int]:
        """Return the task and the round of an assignment; empty and 0 if it is not open any more."""
        with self._changed:
            open_round = self._rounds.get(number)
        return ("", 0) if open_round is None else (open_round.task, open_round.round)

    def piece_sent(self, open_round: OpenRound, client: str, nbytes: int, *, is_last: bool) -> None:
        """A piece of the model went out."""
        with self._handle_event(open_round) as now:
            open_round.state.piece_sent(client, nbytes, now, is_last=is_last)
        self._observe(BytesTransferred(nbytes, 0))

    def download_queued(self, open_round: OpenRound, client: str) -> None:
        """A client's reading waits for its turn."""
        with self._handle_event(open_round):
            open_round.state.download_queued(client)

    def find_upload(self, open_round: OpenRound, client: str, key: str) -> PendingUpload | None:
        """Return an answer that has begun or is in; None for one that is new, or `Refused` where another one is in."""
        with self._changed:
            upload: PendingUpload | None = open_round.state.find_upload(client, key)
            answered: PendingUpload | None = open_round.state.answers.get(client)
        if answered is not None and answered.key != key:
            raise untimely_refusal(client, Verdict.DUPLICATE)
        return answered or upload

    def begin_upload(self, open_round: OpenRound, announced: PendingUpload) -> PendingUpload:
        """A stream of an answer begins; or raise `Refused`. One that is in, or is being committed, may come again.

        Returns the upload that it carries: that of another stream, if the same answer was announced twice at once.
        """
        state, client = open_round.state, announced.client
        with self._handle_event(open_round) as now:
            upload: PendingUpload = state.find_upload(client, announced.key) or announced
            verdict = state.begin_upload(client, upload.key, upload, now, is_staged=upload.staged is not None)
            is_welcome = upload.participation is not None or state.is_current(client, upload)
        if upload is not announced or not is_welcome:
            announced.discard()
        if not is_welcome:
            raise untimely_refusal(client, verdict)
        return upload

    def verdict_for(self, open_round: OpenRound, upload: PendingUpload) -> Verdict:
        """Say what a piece of an answer would be."""
        with self._changed:
            verdict = open_round.state.verdict_for(upload.client)
            is_held = open_round.state.is_current(upload.client, upload)
        return Verdict.FAILED if verdict is Verdict.ACCEPTED and not is_held else verdict

    def memory_requested(self, open_round: OpenRound, upload: PendingUpload) -> None:
        """Pieces could come."""
        with self._handle_event(open_round) as now:
            open_round.state.memory_requested(upload.client, upload, now)

    def memory_granted(self, open_round: OpenRound, upload: PendingUpload) -> None:
        """Memory for the pieces was granted."""
        with self._handle_event(open_round) as now:
            open_round.state.memory_granted(upload.client, upload, now)

    def upload_call_ended(self, open_round: OpenRound, upload: PendingUpload) -> None:
        """The call that carried an answer has ended, for now or for good."""
        with self._handle_event(open_round) as now:
            open_round.state.upload_call_ended(upload.client, upload, now)

    def piece_received(self, open_round: OpenRound, upload: PendingUpload, nbytes: int) -> None:
        """A piece is in."""
        with self._handle_event(open_round) as now:
            open_round.state.piece_received(upload.client, upload, nbytes, now, is_last=upload.inbox.is_complete)
        self._observe(BytesTransferred(0, nbytes))

    def fail(
        self,
        open_round: OpenRound,
        client: str,
        reason: str,
        *,
        upload: PendingUpload | None = None,
        is_at_fault: bool = True,
    ) -> None:
        """The client will not answer; or `upload` will not, which changes nothing where another took its place."""
        with self._handle_event(open_round):
            if upload is None or open_round.state.is_current(client, upload):
                open_round.state.fail(client, printable(reason, MAX_REASON_CHARACTERS), is_at_fault=is_at_fault)

    def commit(self, open_round: OpenRound, upload: PendingUpload) -> None:
        """Make an answer count, once; a second time it counts already. The aggregator works without the lock."""
        client, state = upload.client, open_round.state
        with self._handle_event(open_round):
            self._changed.wait_for(lambda: state.verdict_for(client) is not Verdict.COMMITTING)
            verdict = state.begin_commit(client, upload)
        if verdict is Verdict.DUPLICATE:
            return
        if verdict is not Verdict.ACCEPTED:
            raise untimely_refusal(client, verdict)
        try:
            if open_round.aggregator is not None and upload.staged is not None:
                open_round.aggregator.commit(upload.staged)
        except BaseException as error:
            with self._handle_event(open_round):
                state.commit_failed(client, printable(str(error), MAX_REASON_CHARACTERS))
                self._changed.notify_all()
            if isinstance(error, FlcoreError) and not isinstance(error, LOWER_LEVEL_ERRORS):
                raise refusal_for(error) from error
            raise
        with self._handle_event(open_round) as now:
            upload.participation = Participation(
                upload.message.weight, upload.metrics, upload.bytes, now - state.opened_at
            )
            state.committed(client)
            self._changed.notify_all()  # another stream of the same answer may wait for this
        self._observe(
            TaskAnswered(
                open_round.task,
                client,
                open_round.round,
                state.number,
                upload.message.weight,
                upload.bytes,
                upload.key,
            )
        )
        if upload.invalid_metrics:
            self._observe(InvalidMetrics(open_round.task, client, upload.invalid_metrics))

    @contextmanager
    def _handle_event(self, open_round: OpenRound) -> Iterator[float]:
        """Hold the lock for one event, which is told the time; then do what the round asks for."""
        state = open_round.state
        try:
            with self._changed:
                now = self._clock()
                self._credit_lost_time(open_round, now)
                try:
                    yield now
                finally:
                    actions = state.pop_actions()
                    for action in actions:
                        if isinstance(action, Release):
                            self._release_client(open_round, action.client)
                    if state.is_closed or state.due_at < open_round.wakes_at:
                        self._changed.notify_all()
        finally:
            for action in actions:
                if isinstance(action, Spill):
                    self._spiller.submit(partial(self._spill, open_round, action))
                elif isinstance(action, Discard):
                    action.upload.discard()
            self._flush_outgoing()

    def _release_client(self, open_round: OpenRound, client: str) -> None:
        link = open_round.links.get(client)
        if link is not None:
            self._outgoing.append(partial(link.cancel_transfers, open_round.state.number))
            self._outgoing.append(partial(link.send, Withdrawal(open_round.state.number)))

    def _spill(self, open_round: OpenRound, action: Spill) -> None:
        """Bring an update to disk, on a thread of its own: a disk may be slow, and timers do not wait for it."""
        try:
            action.upload.staged.spill()
        except StagingError as error:
            self.fail(open_round, action.client, str(error), upload=action.upload, is_at_fault=False)

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
