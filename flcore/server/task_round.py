"""One task asked of the sampled clients, as a state machine without I/O: it is told events and the time.

It closes when every client has answered or failed, at its deadline, or as soon as `close_at` answers are in. A client
that is lost has failed once it has been gone for `grace_s`, unless it comes back. A
client whose model or update does not move on has failed after `stall_timeout_s`.

What an event asks for is put into a list of actions, which the caller takes (`take_actions`) and performs once it has
released its lock. Nothing here waits, looks at a clock, or calls what it was given.
"""

from dataclasses import dataclass
from enum import Enum
from typing import Any

from flcore.server.timers import NEVER, Timers
from flcore.server.uploading import Phase, Uploading


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
class RoundRules:
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
    """Let go of an update that will not count."""

    client: str
    upload: Any


@dataclass(frozen=True, slots=True)
class Release:
    """The task is over for a client that has not answered: end its transfers, and take the task back."""

    client: str


Action = Spill | Discard | Release


@dataclass(slots=True)
class _Client:
    """What a client that has neither answered nor failed is at."""

    lost_at: float | None = None
    reading_since: float | None = None
    uploading: Uploading | None = None


class TaskRound:
    """The state of one task asked of `clients`, known by its `number`; rounds are numbered in the order they open.

    `answers` has the upload of each client whose answer is in, `failed` the reason of each that will not answer.
    `at_fault` are those that failed by what they said or sent, or did not send in all their time, and not by the
    network or the server.

    >>> round_ = TaskRound(7, ["a", "b"], RoundRules(deadline_s=60.0), now=0.0)
    >>> upload = object()
    >>> round_.begin_upload("a", "key", upload, now=1.0)
    <Verdict.ACCEPTED: 'it counts'>
    >>> round_.begin_commit("a", upload)
    <Verdict.ACCEPTED: 'it counts'>
    >>> round_.committed("a")
    >>> round_.fail("b", "out of memory")
    >>> round_.is_closed, list(round_.answers), round_.take_actions()
    (True, ['a'], [Release(client='b')])
    """

    def __init__(self, number: int, clients: list[str], rules: RoundRules, now: float) -> None:
        self.number, self.clients, self.rules = number, tuple(clients), rules
        self.answers: dict[str, Any] = {}
        self.failed: dict[str, str] = {}
        self.at_fault: set[str] = set()
        self.opened_at, self.is_closed = now, False
        self.bytes_sent = self.bytes_received = 0
        self._pending = {client: _Client() for client in clients}
        self._committing: set[str] = set()
        self._deadline = now + rules.deadline_s
        self._room_released_at = -NEVER
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

    def judge(self, client: str) -> Verdict:
        """Say what an answer of `client` would be now."""
        if client in self._pending:
            return Verdict.COMMITTING if client in self._committing else Verdict.ACCEPTED
        if client in self.answers:
            return Verdict.DUPLICATE
        if client not in self.failed:
            return Verdict.NOT_ASKED
        return Verdict.LATE if self.is_closed else Verdict.FAILED

    def upload_of(self, client: str, key: str) -> Any:
        """Return the upload of an answer that has begun and may go on, or None."""
        asked = self._pending.get(client)
        held = asked.uploading if asked is not None else None
        return held.upload if held is not None and held.key == key else None

    def is_open_for(self, client: str, upload: Any) -> bool:
        """Whether an upload may go on: it has not been let go, and no other one has taken its place."""
        return self._held(client, upload) is not None

    def take_actions(self) -> list[Action]:
        """Return what is to be done, in this order, and forget it."""
        actions, self._actions = self._actions, []
        return actions

    # What clients do.

    def connected(self, client: str) -> None:
        """The client can be reached (again)."""
        if client in self._pending:
            self._pending[client].lost_at = None

    def disconnected(self, client: str, now: float) -> None:
        """The client cannot be reached."""
        asked = self._pending.get(client)
        if asked is not None and asked.lost_at is None:
            asked.lost_at = now
            self._arm(client, asked)

    def piece_sent(self, client: str, nbytes: int, now: float, *, is_last: bool) -> None:
        """A piece of the model went to the client."""
        self.bytes_sent += nbytes
        asked = self._pending.get(client)
        if asked is not None:
            asked.reading_since = None if is_last else now
            self._arm(client, asked)

    def download_queued(self, client: str) -> None:
        """The client's reading waits for its turn: that it gets nothing meanwhile is not its fault."""
        asked = self._pending.get(client)
        if asked is not None:
            asked.reading_since = None

    def begin_upload(self, client: str, key: str, upload: Any, now: float, *, is_staged: bool = True) -> Verdict:
        """A stream of an answer begins: of a new one, which takes the place of an earlier one, or once more.

        `key` tells answers of a client apart. `is_staged` is False for an answer of metrics alone.
        """
        verdict = self.judge(client)
        if verdict is Verdict.ACCEPTED:
            asked = self._pending[client]
            held = asked.uploading
            if held is None or held.upload is not upload:
                self._discard(client, asked)
                asked.uploading = held = Uploading(key, upload, is_staged, now)
            held.enter_queue(now)
            self._arm(client, asked)
        return verdict

    def room_wanted(self, client: str, upload: Any, now: float) -> None:
        """Pieces could come, and wait for room in memory."""
        if held := self._held(client, upload):
            held.want_room(now)
            self._arm(client, self._pending[client])

    def room_found(self, client: str, upload: Any, now: float) -> None:
        """There is room, and the next piece may come."""
        if held := self._held(client, upload):
            held.move(now)
            self._arm(client, self._pending[client])

    def stream_ended(self, client: str, upload: Any, now: float) -> None:
        """The call that carried an answer has ended; from now on its client's silence counts."""
        self.room_found(client, upload, now)

    def piece_taken(self, client: str, upload: Any, nbytes: int, now: float, *, is_last: bool) -> None:
        """A piece of an answer is in."""
        self.bytes_received += nbytes
        if held := self._held(client, upload):
            held.take_piece(now, is_last=is_last)
            self._arm(client, self._pending[client])

    def begin_commit(self, client: str, upload: Any) -> Verdict:
        """The answer is whole: until `committed` or `commit_failed`, the round does not close without it."""
        held, verdict = self._held(client, upload), self.judge(client)
        if verdict is Verdict.ACCEPTED:
            if held is None:
                return Verdict.FAILED  # another answer of the same client took its place
            held.phase = Phase.COMMITTING
            self._committing.add(client)
        return verdict

    def committed(self, client: str) -> None:
        """The answer counts: its upload is in `answers`."""
        self._committing.remove(client)
        asked = self._pending.pop(client)
        self.answers[client] = asked.uploading and asked.uploading.upload
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

    def tick(self, now: float, room_released_at: float = -NEVER) -> None:
        """Let time pass. `room_released_at` is when staged updates gave room in memory back the last time."""
        self._room_released_at = room_released_at
        for client in self._timers.due(now):
            if client in self._pending:
                self._attend(client, self._pending[client], now)
        if now >= self._deadline:
            self._deadline = NEVER  # answers that are being committed are waited for
            for client in [client for client in self._pending if client not in self._committing]:
                if self._could_go_on(self._pending[client]):
                    self.at_fault.add(client)
                self._fail(client, f"it did not answer within the deadline of {self.rules.deadline_s:g} s")
        self._close_if_done()

    def pause(self, seconds: float) -> None:
        """The server itself stood still for so long: nobody's silence counts meanwhile, and nobody's time runs."""
        self._deadline += seconds
        for client, asked in self._pending.items():
            if asked.lost_at is not None:
                asked.lost_at += seconds
            if asked.reading_since is not None:
                asked.reading_since += seconds
            if asked.uploading is not None:
                asked.uploading.pause(seconds)
            self._arm(client, asked)

    def _attend(self, client: str, asked: _Client, now: float) -> None:
        """See to a client that something may be due for."""
        rules = self.rules
        if client in self._committing:
            return
        if asked.lost_at is not None and now >= asked.lost_at + rules.grace_s:
            self._fail(client, f"its connection was lost and not back within {rules.grace_s:g} s")
        elif now >= self._stalls_at(asked):
            self._fail(client, f"no bytes for {rules.stall_timeout_s:g} s (server.stall_timeout_s)")
        else:
            if asked.uploading is not None and now >= self._spills_at(asked.uploading):
                asked.uploading.is_spilled = True
                self._actions.append(Spill(client, asked.uploading.upload))
            self._arm(client, asked)

    def _arm(self, client: str, asked: _Client) -> None:
        spills_at = NEVER if asked.uploading is None else self._spills_at(asked.uploading)
        lost = NEVER if asked.lost_at is None else asked.lost_at + self.rules.grace_s
        self._timers.arm(client, min(spills_at, lost, self._stalls_at(asked)))

    def _spills_at(self, held: Uploading) -> float:
        return held.spills_at(self.rules.spill_after_s, self._room_released_at)

    def _stalls_at(self, asked: _Client) -> float:
        timeout_s = self.rules.stall_timeout_s
        reading = NEVER if asked.reading_since is None else asked.reading_since + timeout_s
        return reading if asked.uploading is None else min(reading, asked.uploading.fails_at(timeout_s))

    @staticmethod
    def _could_go_on(asked: _Client) -> bool:
        """Whether nothing but a client itself keeps it from answering."""
        waits = asked.uploading is not None and asked.uploading.phase in (Phase.QUEUED, Phase.WAITING)
        return asked.lost_at is None and not waits

    def _held(self, client: str, upload: Any) -> Uploading | None:
        asked = self._pending.get(client)
        held = None if asked is None else asked.uploading
        return held if held is not None and held.upload is upload else None

    def _fail(self, client: str, reason: str) -> None:
        self._discard(client, self._pending.pop(client))
        self.failed[client] = reason
        self._actions.append(Release(client))

    def _discard(self, client: str, asked: _Client) -> None:
        if asked.uploading is not None:
            self._actions.append(Discard(client, asked.uploading.upload))
            asked.uploading = None

    def _close_if_done(self) -> None:
        enough = self.rules.close_at is not None and len(self.answers) >= self.rules.close_at
        if self.is_closed or self._committing or (self._pending and not enough):
            return
        for client in list(self._pending):
            self._fail(client, f"the round closed with {len(self.answers)} answers before it had answered")
        self.is_closed = True
