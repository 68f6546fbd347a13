"""One task asked of the sampled clients, as a state machine without I/O: it is told events and the time.

It closes when every client has answered or failed, at its deadline, or as soon as `close_at` answers are in. A client
that is lost has failed once it has been gone for `grace_s`, unless it comes back. A
client whose model or update does not move on has failed after `stall_timeout_s`.

What an event asks for is put into a list of actions, which the caller takes (`pop_actions`) and performs once it has
released its lock. Nothing here waits, looks at a clock, or calls what it was given.
"""

from dataclasses import dataclass
from enum import Enum
from typing import Any

from flcore.server.timers import NEVER, Timers
from flcore.server.upload_progress import UploadPhase, UploadProgress


class Verdict(Enum):
    """What an answer is to a round."""

    ACCEPTED = "it counts"
    DUPLICATE = "the same client's answer is in already"
    COMMITTING = "the same client's answer is being committed"
    LATE = "the round has closed without it"
    STALE = "it answers an earlier round"
    NOT_ASKED = "this client was not asked"
    FAILED = "this client has failed in this round"


@dataclass(frozen=True)
class AttemptPolicy:
    """When a round closes. Seconds; `close_at` None waits for all.

    An update that nothing comes of for `spill_after_s` gives its memory back and goes to disk.
    """

    deadline_s: float
    close_at: int | None = None
    grace_s: float = 5.0
    stall_timeout_s: float = 60.0
    spill_after_s: float = 2.0


@dataclass(frozen=True, slots=True)
class Spill:
    """Bring an update to disk: `upload` is what `begin_upload` was given."""

    client: str
    upload: Any


@dataclass(frozen=True, slots=True)
class Discard:
    """Discard an update that will not count."""

    client: str
    upload: Any


@dataclass(frozen=True, slots=True)
class Withdraw:
    """The task is over for a client that has not answered: end its transfers, and take the task back."""

    client: str


Action = Spill | Discard | Withdraw


@dataclass(slots=True)
class _ClientState:
    """What a client that has neither answered nor failed is at."""

    lost_at: float | None = None
    download_idle_since: float | None = None
    progress: UploadProgress | None = None


class TaskAttempt:
    """The state of one task asked of `clients`, known by its `number`; rounds are numbered in the order they open.

    `answers` has the upload of each client whose answer is in, `failed` the reason of each that will not answer.
    `at_fault` are those that failed by what they said or sent, or did not send in all their time, and not by the
    network or the server.

    >>> attempt = TaskAttempt(7, ["a", "b"], AttemptPolicy(deadline_s=60.0), now=0.0)
    >>> upload = object()
    >>> attempt.begin_upload("a", "key", upload, now=1.0)
    <Verdict.ACCEPTED: 'it counts'>
    >>> attempt.begin_commit("a", upload)
    <Verdict.ACCEPTED: 'it counts'>
    >>> attempt.committed("a")
    >>> attempt.fail("b", "out of memory")
    >>> attempt.is_closed, list(attempt.answers), attempt.pop_actions()
    (True, ['a'], [Withdraw(client='b')])
    """

    def __init__(self, assignment_id: int, clients: list[str], policy: AttemptPolicy, now: float) -> None:
        self.assignment_id, self.clients, self.policy = assignment_id, tuple(clients), policy
        self.answers: dict[str, Any] = {}
        self.failed: dict[str, str] = {}
        self.at_fault: set[str] = set()
        self.opened_at, self.is_closed = now, False
        self.bytes_sent = self.bytes_received = 0
        self._pending = {client: _ClientState() for client in clients}
        self._committing: set[str] = set()
        self._deadline = now + policy.deadline_s
        self._memory_freed_at = -NEVER
        self._timers = Timers()
        self._actions: list[Action] = []
        self._close_if_done()

    # What can be asked.

    @property
    def pending(self) -> list[str]:
        """Clients that have neither answered nor failed."""
        return list(self._pending)

    @property
    def due_at(self) -> float:
        """When `tick` has something to do next, if nothing else happens."""
        return NEVER if self.is_closed else min(self._deadline, self._timers.next)

    def verdict_for(self, client: str) -> Verdict:
        """Say what an answer of `client` would be now."""
        if client in self._pending:
            return Verdict.COMMITTING if client in self._committing else Verdict.ACCEPTED
        if client in self.answers:
            return Verdict.DUPLICATE
        if client not in self.failed:
            return Verdict.NOT_ASKED
        return Verdict.LATE if self.is_closed else Verdict.FAILED

    def find_upload(self, client: str, key: str) -> Any:
        """Return the upload of an answer that has begun and may go on, or None."""
        state = self._pending.get(client)
        progress = state.progress if state is not None else None
        return progress.upload if progress is not None and progress.key == key else None

    def is_current(self, client: str, upload: Any) -> bool:
        """Whether an upload may continue: it has been neither discarded nor replaced."""
        return self._progress_of(client, upload) is not None

    def pop_actions(self) -> list[Action]:
        """Return the pending actions, in order, and clear them."""
        actions, self._actions = self._actions, []
        return actions

    # What clients do.

    def connected(self, client: str) -> None:
        """The client can be reached (again)."""
        if client in self._pending:
            self._pending[client].lost_at = None

    def disconnected(self, client: str, now: float) -> None:
        """The client cannot be reached."""
        state = self._pending.get(client)
        if state is not None and state.lost_at is None:
            state.lost_at = now
            self._arm_timer(client, state)

    def piece_sent(self, client: str, nbytes: int, now: float, *, is_last: bool) -> None:
        """A piece of the model went to the client."""
        self.bytes_sent += nbytes
        state = self._pending.get(client)
        if state is not None:
            state.download_idle_since = None if is_last else now
            self._arm_timer(client, state)

    def download_queued(self, client: str) -> None:
        """The client's reading waits for its turn: that it gets nothing meanwhile is not its fault."""
        state = self._pending.get(client)
        if state is not None:
            state.download_idle_since = None

    def begin_upload(self, client: str, key: str, upload: Any, now: float, *, is_staged: bool = True) -> Verdict:
        """A stream of an answer begins: of a new one, which takes the place of an earlier one, or once more.

        `key` tells answers of a client apart. `is_staged` is False for an answer of metrics alone.
        """
        verdict = self.verdict_for(client)
        if verdict is Verdict.ACCEPTED:
            state = self._pending[client]
            progress = state.progress
            if progress is None or progress.upload is not upload:
                self._discard(client, state)
                state.progress = progress = UploadProgress(key, upload, is_staged, now)
            progress.enqueue(now)
            self._arm_timer(client, state)
        return verdict

    def memory_requested(self, client: str, upload: Any, now: float) -> None:
        """The upload's turn has come; it waits for memory."""
        if progress := self._progress_of(client, upload):
            progress.await_memory(now)
            self._arm_timer(client, self._pending[client])

    def memory_granted(self, client: str, upload: Any, now: float) -> None:
        """Memory was granted; the next piece may arrive."""
        if progress := self._progress_of(client, upload):
            progress.resume(now)
            self._arm_timer(client, self._pending[client])

    def upload_call_ended(self, client: str, upload: Any, now: float) -> None:
        """The call that carried an answer has ended; from now on its client's silence counts."""
        self.memory_granted(client, upload, now)

    def piece_received(self, client: str, upload: Any, nbytes: int, now: float, *, is_last: bool) -> None:
        """A piece of an answer is in."""
        self.bytes_received += nbytes
        if progress := self._progress_of(client, upload):
            progress.record_piece(now, is_last=is_last)
            self._arm_timer(client, self._pending[client])

    def begin_commit(self, client: str, upload: Any) -> Verdict:
        """The answer is whole: until `committed` or `commit_failed`, the round does not close without it."""
        progress, verdict = self._progress_of(client, upload), self.verdict_for(client)
        if verdict is Verdict.ACCEPTED:
            if progress is None:
                return Verdict.FAILED  # another answer of the same client took its place
            progress.phase = UploadPhase.COMMITTING
            self._committing.add(client)
        return verdict

    def committed(self, client: str) -> None:
        """The answer counts: its upload is in `answers`."""
        self._committing.remove(client)
        state = self._pending.pop(client)
        self.answers[client] = state.progress and state.progress.upload
        self._close_if_done()

    def commit_failed(self, client: str, reason: str) -> None:
        """The answer does not count after all, and its client has failed."""
        self._committing.remove(client)
        self._fail(client, reason)
        self._close_if_done()

    def fail(self, client: str, reason: str, *, is_at_fault: bool = True) -> None:
        """The client will not answer, for what it said or sent. Ignored where it makes no difference any more."""
        if client in self._pending and client not in self._committing:
            self._fail(client, reason)
            if is_at_fault:
                self.at_fault.add(client)
            self._close_if_done()

    def abandon(self) -> None:
        """Nobody waits for the round any more: it closes as it is."""
        for client in [client for client in self._pending if client not in self._committing]:
            self._fail(client, "the round was abandoned")
        self.is_closed = True

    # What time does.

    def tick(self, now: float, memory_freed_at: float = -NEVER) -> None:
        """Advance time. `memory_freed_at` is when staged updates last released memory."""
        self._memory_freed_at = memory_freed_at
        for client in self._timers.due(now):
            if client in self._pending:
                self._check_timeouts(client, self._pending[client], now)
        if now >= self._deadline:
            self._deadline = NEVER  # answers that are being committed are waited for
            for client in [client for client in self._pending if client not in self._committing]:
                if self._awaits_client(self._pending[client]):
                    self.at_fault.add(client)
                self._fail(client, f"it did not answer within the deadline of {self.policy.deadline_s:g} s")
        self._close_if_done()

    def pause(self, seconds: float) -> None:
        """The server itself stood still for so long: nobody's silence counts meanwhile, and nobody's time runs."""
        self._deadline += seconds
        for client, state in self._pending.items():
            if state.lost_at is not None:
                state.lost_at += seconds
            if state.download_idle_since is not None:
                state.download_idle_since += seconds
            if state.progress is not None:
                state.progress.pause(seconds)
            self._arm_timer(client, state)

    def _check_timeouts(self, client: str, state: _ClientState, now: float) -> None:
        """See to a client that something may be due for."""
        policy = self.policy
        if client in self._committing:
            return
        if state.lost_at is not None and now >= state.lost_at + policy.grace_s:
            self._fail(client, f"its connection was lost and not back within {policy.grace_s:g} s")
        elif now >= self._stalls_at(state):
            self._fail(client, f"no bytes for {policy.stall_timeout_s:g} s (server.stall_timeout_s)")
        else:
            if state.progress is not None and now >= self._spills_at(state.progress):
                state.progress.is_spilled = True
                self._actions.append(Spill(client, state.progress.upload))
            self._arm_timer(client, state)

    def _arm_timer(self, client: str, state: _ClientState) -> None:
        spills_at = NEVER if state.progress is None else self._spills_at(state.progress)
        lost = NEVER if state.lost_at is None else state.lost_at + self.policy.grace_s
        self._timers.arm(client, min(spills_at, lost, self._stalls_at(state)))

    def _spills_at(self, progress: UploadProgress) -> float:
        return progress.spills_at(self.policy.spill_after_s, self._memory_freed_at)

    def _stalls_at(self, state: _ClientState) -> float:
        timeout_s = self.policy.stall_timeout_s
        download_stalls_at = NEVER if state.download_idle_since is None else state.download_idle_since + timeout_s
        if state.progress is None:
            return download_stalls_at
        return min(download_stalls_at, state.progress.fails_at(timeout_s))

    @staticmethod
    def _awaits_client(state: _ClientState) -> bool:
        """Whether nothing but a client itself keeps it from answering."""
        waits = state.progress is not None and state.progress.phase in (UploadPhase.QUEUED, UploadPhase.AWAITING_MEMORY)
        return state.lost_at is None and not waits

    def _progress_of(self, client: str, upload: Any) -> UploadProgress | None:
        state = self._pending.get(client)
        progress = None if state is None else state.progress
        return progress if progress is not None and progress.upload is upload else None

    def _fail(self, client: str, reason: str) -> None:
        self._discard(client, self._pending.pop(client))
        self.failed[client] = reason
        self._actions.append(Withdraw(client))

    def _discard(self, client: str, state: _ClientState) -> None:
        if state.progress is not None:
            self._actions.append(Discard(client, state.progress.upload))
            state.progress = None

    def _close_if_done(self) -> None:
        has_enough = self.policy.close_at is not None and len(self.answers) >= self.policy.close_at
        if self.is_closed or self._committing or (self._pending and not has_enough):
            return
        for client in list(self._pending):
            self._fail(client, f"the round closed with {len(self.answers)} answers before it had answered")
        self.is_closed = True
