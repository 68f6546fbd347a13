"""One attempt at a task, as a state machine without I/O: it is told events and the time.

An attempt closes when every client has answered or failed, at its deadline, or as soon as `close_at` answers are in. A
client fails if it stays disconnected for `grace_s`, or if its download or upload makes no progress for
`stall_timeout_s`.

An event appends actions to a list. The caller takes them (`pop_actions`) under its lock and performs them after it has
released the lock. Nothing here waits, reads a clock, or calls the objects that it was given.
"""

from dataclasses import dataclass
from enum import Enum
from typing import Any

from flcore.aggregation.staging import SPILL_AFTER_S
from flcore.server.timers import NEVER, Timers
from flcore.server.upload_progress import UploadPhase, UploadProgress

DEFAULT_GRACE_S = 5.0

ABANDONED = "the attempt was abandoned"
"""The reason of the clients of an attempt that the end of the run has closed."""


class Verdict(Enum):
    """Whether an attempt takes an answer, or why not. The value ends the sentence of a refusal."""

    ACCEPTED = "it counts"
    DUPLICATE = "the same client's answer is in already"
    COMMITTING = "the same client's answer is being committed"
    SUPERSEDED = "a newer upload of the same client has replaced it"
    LATE = "the attempt has closed without it"
    STALE = "it answers an earlier attempt"
    NOT_ASKED = "this client was not asked"
    FAILED = "this client has failed in this attempt"


@dataclass(frozen=True)
class AttemptPolicy:
    """The limits of an attempt, in seconds, and the number of answers that closes it.

    Attributes:
        deadline_s: The attempt closes after this time.
        close_at: The attempt closes early with this number of answers. None: it waits for all clients.
        grace_s: A client that is disconnected for this time fails.
        stall_timeout_s: A client whose download or upload makes no progress for this time fails.
        spill_after_s: An upload that receives no piece for this time is moved from memory to disk. So is an upload that
            waits for memory for this time while none is freed.
    """

    deadline_s: float
    close_at: int | None = None
    grace_s: float = DEFAULT_GRACE_S
    stall_timeout_s: float = 60.0
    spill_after_s: float = SPILL_AFTER_S


@dataclass(frozen=True, slots=True)
class Spill:
    """Move an update from memory to disk. `upload` is the object that was passed to `begin_upload`."""

    client: str
    upload: Any


@dataclass(frozen=True, slots=True)
class Discard:
    """Free an update that will not count."""

    client: str
    upload: Any


@dataclass(frozen=True, slots=True)
class Withdraw:
    """End the transfers of a client that will not answer any more, and withdraw its assignment."""

    client: str


Action = Spill | Discard | Withdraw


@dataclass(slots=True)
class _PendingClient:
    """The state of a client that has neither answered nor failed. Times are None while they do not apply."""

    disconnected_at: float | None = None
    download_idle_since: float | None = None
    progress: UploadProgress | None = None


class TaskAttempt:
    """The state of one attempt. Attempts are numbered by `assignment_id`, in the order in which they open.

    Attributes:
        answers: The committed upload of each client that has answered.
        failed: The reason of each client that has failed.
        at_fault: The failed clients whose failure is their own: a failed task, a refused update, or silence until the
            deadline while connected. A broken connection or an error of the server is not a client's fault.

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
        self._pending = {client: _PendingClient() for client in clients}
        self._committing: set[str] = set()  # a subset of the pending clients
        self._deadline = now + policy.deadline_s
        self._memory_freed_at = -NEVER
        self._timers = Timers()
        self._actions: list[Action] = []
        self._close_if_done()

    # Queries.

    @property
    def due_at(self) -> float:
        """The time of the next `tick` that has something to do, if no event comes first."""
        return NEVER if self.is_closed else min(self._deadline, self._timers.next)

    def verdict_for(self, client: str) -> Verdict:
        """Return the verdict that an answer of `client` would get now."""
        if client in self._pending:
            return Verdict.COMMITTING if client in self._committing else Verdict.ACCEPTED
        if client in self.answers:
            return Verdict.DUPLICATE
        if client not in self.failed:
            return Verdict.NOT_ASKED
        return Verdict.LATE if self.is_closed else Verdict.FAILED

    def verdict_for_upload(self, client: str, upload: Any) -> Verdict:
        """Return the verdict for an upload that has begun. It is superseded if its client has begun another one."""
        verdict = self.verdict_for(client)
        is_superseded = verdict is Verdict.ACCEPTED and not self.is_current(client, upload)
        return Verdict.SUPERSEDED if is_superseded else verdict

    def find_upload(self, client: str, key: str) -> Any:
        """Return the client's upload with this key if it may be resumed, or None."""
        pending = self._pending.get(client)
        progress = pending.progress if pending is not None else None
        return progress.upload if progress is not None and progress.key == key else None

    def is_current(self, client: str, upload: Any) -> bool:
        """Whether an upload may continue: it has been neither discarded nor replaced."""
        return self._progress_of(client, upload) is not None

    def pop_actions(self) -> list[Action]:
        """Return the actions that are due, in order, and clear them."""
        actions, self._actions = self._actions, []
        return actions

    # Events from clients.

    def connected(self, client: str) -> None:
        """The client can be reached (again)."""
        if client in self._pending:
            self._pending[client].disconnected_at = None

    def disconnected(self, client: str, now: float) -> None:
        """The client cannot be reached."""
        pending = self._pending.get(client)
        if pending is not None and pending.disconnected_at is None:
            pending.disconnected_at = now
            self._arm_timer(client, pending)

    def piece_sent(self, client: str, nbytes: int, now: float, *, is_last: bool) -> None:
        """A piece of the model was sent to the client."""
        self.bytes_sent += nbytes
        pending = self._pending.get(client)
        if pending is not None:
            pending.download_idle_since = None if is_last else now
            self._arm_timer(client, pending)

    def download_queued(self, client: str) -> None:
        """The client's download waits for a window. This time does not count as a stall."""
        pending = self._pending.get(client)
        if pending is not None:
            pending.download_idle_since = None

    def begin_upload(self, client: str, key: str, upload: Any, now: float, *, is_staged: bool = True) -> Verdict:
        """A call begins or resumes an upload. Another upload of the same client is replaced and discarded.

        Args:
            client: The name of the client.
            key: Distinguishes the client's answers.
            upload: The caller's object for the upload; compared by identity.
            now: The time in seconds.
            is_staged: False for an answer of metrics alone.

        Returns:
            `Verdict.ACCEPTED` if the upload may send pieces; else nothing has changed.
        """
        verdict = self.verdict_for(client)
        if verdict is Verdict.ACCEPTED:
            pending = self._pending[client]
            progress = pending.progress
            if progress is None or progress.upload is not upload:
                self._discard(client, pending)
                pending.progress = progress = UploadProgress(key, upload, is_staged, now)
            progress.enqueue(now)
            self._arm_timer(client, pending)
        return verdict

    def memory_requested(self, client: str, upload: Any, now: float) -> None:
        """The upload has a window, and waits for memory."""
        if progress := self._progress_of(client, upload):
            progress.await_memory(now)
            self._arm_timer(client, self._pending[client])

    def memory_granted(self, client: str, upload: Any, now: float) -> None:
        """The upload has memory; the client may send the next piece."""
        self._expect_pieces(client, upload, now)

    def upload_call_ended(self, client: str, upload: Any, now: float) -> None:
        """The upload's call has ended. Time until the client resumes the upload counts as a stall."""
        self._expect_pieces(client, upload, now)

    def piece_received(self, client: str, upload: Any, nbytes: int, now: float, *, is_last: bool) -> None:
        """A piece of an upload was received."""
        self.bytes_received += nbytes
        if progress := self._progress_of(client, upload):
            progress.record_piece(now, is_last=is_last)
            self._arm_timer(client, self._pending[client])

    def begin_commit(self, client: str, upload: Any) -> Verdict:
        """All pieces are in. If accepted, the attempt stays open until `committed` or `commit_failed`."""
        verdict, progress = self.verdict_for_upload(client, upload), self._progress_of(client, upload)
        if verdict is Verdict.ACCEPTED and progress is not None:
            progress.phase = UploadPhase.COMMITTING
            self._committing.add(client)
        return verdict

    def committed(self, client: str) -> None:
        """The commit succeeded: the answer counts."""
        self._committing.remove(client)
        pending = self._pending.pop(client)
        self.answers[client] = pending.progress and pending.progress.upload
        self._close_if_done()

    def commit_failed(self, client: str, reason: str) -> None:
        """The commit failed: the client has failed, though not by its own fault."""
        self._committing.remove(client)
        self._fail(client, reason)
        self._close_if_done()

    def fail(self, client: str, reason: str, *, is_at_fault: bool = True) -> None:
        """The client has failed. Ignored if it has answered or failed before, or if its answer is being committed."""
        if client in self._pending and client not in self._committing:
            self._fail(client, reason)
            if is_at_fault:
                self.at_fault.add(client)
            self._close_if_done()

    def abandon(self) -> None:
        """Close the attempt at once. Clients without an answer fail, except those whose answer is being committed."""
        for client in [client for client in self._pending if client not in self._committing]:
            self._fail(client, ABANDONED)
        self.is_closed = True

    # Events of time.

    def tick(self, now: float, memory_freed_at: float = -NEVER) -> None:
        """Advance the time. `memory_freed_at` is the time at which staged updates last freed memory."""
        self._memory_freed_at = memory_freed_at
        for client in self._timers.due(now):
            if client in self._pending:
                self._check_timeouts(client, self._pending[client], now)
        if now >= self._deadline:
            # Only commits that have begun keep the attempt open after the deadline.
            self._deadline = NEVER
            for client in [client for client in self._pending if client not in self._committing]:
                if self._is_awaiting_client(self._pending[client]):
                    self.at_fault.add(client)
                self._fail(client, f"it did not answer within the deadline of {self.policy.deadline_s:g} s")
        self._close_if_done()

    def pause(self, seconds: float) -> None:
        """The server process was suspended for this time: move the deadline and every timeout by it."""
        self._deadline += seconds
        for client, pending in self._pending.items():
            if pending.disconnected_at is not None:
                pending.disconnected_at += seconds
            if pending.download_idle_since is not None:
                pending.download_idle_since += seconds
            if pending.progress is not None:
                pending.progress.pause(seconds)
            self._arm_timer(client, pending)

    def _check_timeouts(self, client: str, pending: _PendingClient, now: float) -> None:
        """Fail a client that has timed out, or spill its update. Timers may be early: then only arm the next one."""
        policy = self.policy
        if client in self._committing:
            return
        if pending.disconnected_at is not None and now >= pending.disconnected_at + policy.grace_s:
            self._fail(client, f"its connection was lost and not back within {policy.grace_s:g} s")
        elif now >= self._stalls_at(pending):
            self._fail(client, f"no bytes for {policy.stall_timeout_s:g} s (server.stall_timeout_s)")
        else:
            if pending.progress is not None and now >= self._spills_at(pending.progress):
                pending.progress.is_spilled = True
                self._actions.append(Spill(client, pending.progress.upload))
            self._arm_timer(client, pending)

    def _arm_timer(self, client: str, pending: _PendingClient) -> None:
        spills_at = NEVER if pending.progress is None else self._spills_at(pending.progress)
        grace_ends_at = NEVER if pending.disconnected_at is None else pending.disconnected_at + self.policy.grace_s
        self._timers.arm(client, min(spills_at, grace_ends_at, self._stalls_at(pending)))

    def _spills_at(self, progress: UploadProgress) -> float:
        return progress.spills_at(self.policy.spill_after_s, self._memory_freed_at)

    def _stalls_at(self, pending: _PendingClient) -> float:
        timeout_s = self.policy.stall_timeout_s
        download_stalls_at = NEVER if pending.download_idle_since is None else pending.download_idle_since + timeout_s
        if pending.progress is None:
            return download_stalls_at
        return min(download_stalls_at, pending.progress.stalls_at(timeout_s))

    @staticmethod
    def _is_awaiting_client(pending: _PendingClient) -> bool:
        """Whether only the client itself delays its answer: it is connected, and not queued by the server."""
        progress = pending.progress
        is_queued = progress is not None and progress.phase in (UploadPhase.QUEUED, UploadPhase.AWAITING_MEMORY)
        return pending.disconnected_at is None and not is_queued

    def _expect_pieces(self, client: str, upload: Any, now: float) -> None:
        """From now on the upload stalls if no piece comes."""
        if progress := self._progress_of(client, upload):
            progress.expect_pieces(now)
            self._arm_timer(client, self._pending[client])

    def _progress_of(self, client: str, upload: Any) -> UploadProgress | None:
        pending = self._pending.get(client)
        progress = None if pending is None else pending.progress
        return progress if progress is not None and progress.upload is upload else None

    def _fail(self, client: str, reason: str) -> None:
        self._discard(client, self._pending.pop(client))
        self.failed[client] = reason
        self._actions.append(Withdraw(client))

    def _discard(self, client: str, pending: _PendingClient) -> None:
        if pending.progress is not None:
            self._actions.append(Discard(client, pending.progress.upload))
            pending.progress = None

    def _close_if_done(self) -> None:
        has_enough = self.policy.close_at is not None and len(self.answers) >= self.policy.close_at
        if self.is_closed or self._committing or (self._pending and not has_enough):
            return
        for client in list(self._pending):
            self._fail(client, f"the attempt closed with {len(self.answers)} answers before it had answered")
        self.is_closed = True
