"""One task, asked of the sampled clients: a pure state machine, which is told the time and never looks at a clock.

It closes when every client has answered or failed, at its deadline, or as soon as `close_at` answers are in; it counts
if the quorum is reached. A client that is lost has failed once it has been gone for `grace_s`, unless it comes back.
"""

from dataclasses import dataclass
from enum import Enum


class Verdict(Enum):
    """What an answer is to a round."""

    ACCEPTED = "it counts"
    DUPLICATE = "the same client's answer is in already"
    LATE = "the round has closed without it"
    STALE = "it answers an earlier round"
    NOT_ASKED = "this client was not asked"
    FAILED = "this client has failed in this round"


@dataclass(frozen=True)
class RoundRules:
    """When a round closes, and when it counts. Seconds; `close_at` None waits for all."""

    deadline_s: float
    quorum: int = 1
    close_at: int | None = None
    grace_s: float = 5.0


class Round:
    """The state of one task asked of `clients`, known by its `number`; rounds are numbered in the order they open.

    >>> round_ = Round(7, ["a", "b"], RoundRules(deadline_s=60.0), now=0.0)
    >>> round_.answer("a", 7, now=1.0), round_.answer("a", 7, now=2.0)
    (<Verdict.ACCEPTED: 'it counts'>, <Verdict.DUPLICATE: "the same client's answer is in already">)
    >>> round_.fail("b", "out of memory", now=3.0)
    >>> round_.is_closed, round_.has_quorum
    (True, True)
    """

    def __init__(self, number: int, clients: list[str], rules: RoundRules, now: float) -> None:
        self.number, self.clients, self.rules = number, tuple(clients), rules
        self.answered: dict[str, float] = {}
        self.failed: dict[str, str] = {}
        self.opened_at = now
        self.is_closed = False
        self._lost_at: dict[str, float] = {}
        self._settle(now)

    @property
    def pending(self) -> list[str]:
        """Clients that have neither answered nor failed."""
        return [client for client in self.clients if client not in self.answered and client not in self.failed]

    @property
    def has_quorum(self) -> bool:
        """Whether enough answers are in for the round to count."""
        return len(self.answered) >= self.rules.quorum

    @property
    def due_at(self) -> float:
        """When `tick` has something to do next, if nothing else happens."""
        graces = [lost_at + self.rules.grace_s for client, lost_at in self._lost_at.items() if client in self.pending]
        return min([self.opened_at + self.rules.deadline_s, *graces])

    def judge(self, client: str, number: int, now: float) -> Verdict:
        """Say what an answer of `client` to round `number` would be. Changes nothing but what is due."""
        self.tick(now)
        if number != self.number:
            return Verdict.STALE if number < self.number else Verdict.NOT_ASKED
        if client not in self.clients:
            return Verdict.NOT_ASKED
        if client in self.answered:
            return Verdict.DUPLICATE
        if self.is_closed:
            return Verdict.LATE
        return Verdict.FAILED if client in self.failed else Verdict.ACCEPTED

    def answer(self, client: str, number: int, now: float) -> Verdict:
        """Count an answer, if it can be counted."""
        verdict = self.judge(client, number, now)
        if verdict is Verdict.ACCEPTED:
            self.answered[client] = now
            self._settle(now)
        return verdict

    def fail(self, client: str, reason: str, now: float) -> None:
        """The client will not answer. Ignored where it makes no difference any more."""
        if not self.is_closed and client in self.pending:
            self.failed[client] = reason
            self._settle(now)

    def lose(self, client: str, now: float) -> None:
        """The client cannot be reached."""
        self._lost_at.setdefault(client, now)

    def find(self, client: str) -> None:
        """The client can be reached again."""
        self._lost_at.pop(client, None)

    def tick(self, now: float) -> None:
        """Let time pass."""
        if self.is_closed:
            return
        for client in self.pending:
            lost_at = self._lost_at.get(client)
            if lost_at is not None and now >= lost_at + self.rules.grace_s:
                self.failed[client] = f"its connection was lost and not back within {self.rules.grace_s:g} s"
        if now >= self.opened_at + self.rules.deadline_s:
            for client in self.pending:
                self.failed[client] = f"it did not answer within the deadline of {self.rules.deadline_s:g} s"
        self._settle(now)

    def _settle(self, now: float) -> None:
        enough = self.rules.close_at is not None and len(self.answered) >= self.rules.close_at
        if enough or not self.pending:
            for client in self.pending:
                self.failed[client] = f"the round closed with {len(self.answered)} answers before it had answered"
            self.is_closed = True
            self.closed_at = now
