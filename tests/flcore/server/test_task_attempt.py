"""An attempt as a state machine: thousands of histories against a model in dictionaries, and no waiting."""

import math
import os
from collections import Counter

import hypothesis.strategies as st
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from flcore.server.task_attempt import Action, AttemptPolicy, Discard, Spill, TaskAttempt, Verdict, Withdraw

POLICY = AttemptPolicy(deadline_s=60.0, grace_s=5.0, stall_timeout_s=20.0)


def opened(clients: str = "abc", policy: AttemptPolicy = POLICY) -> TaskAttempt:
    return TaskAttempt(7, list(clients), policy, now=100.0)


def pending(attempt: TaskAttempt) -> list[str]:
    return [client for client in attempt.clients if client not in attempt.answers and client not in attempt.failed]


def answer(attempt: TaskAttempt, client: str, now: float, key: str = "key") -> Verdict:
    """Send an answer of metrics alone, from its announcement to its commit."""
    upload = object()
    verdict = attempt.begin_upload(client, key, upload, now, is_staged=False)
    if verdict is Verdict.ACCEPTED:
        verdict = attempt.begin_commit(client, upload)
        attempt.committed(client)
    return verdict


def test_it_closes_when_all_have_answered_or_failed() -> None:
    attempt = opened()
    assert answer(attempt, "a", 101) is Verdict.ACCEPTED
    attempt.fail("b", "out of memory")
    assert not attempt.is_closed and pending(attempt) == ["c"]
    assert answer(attempt, "c", 103) is Verdict.ACCEPTED
    assert attempt.is_closed and list(attempt.answers) == ["a", "c"]
    assert attempt.failed == {"b": "out of memory"} and attempt.at_fault == {"b"}


def test_it_closes_at_its_deadline_and_says_who_is_missing() -> None:
    attempt = opened()
    answer(attempt, "a", 101)
    assert attempt.due_at == 160
    attempt.tick(159.9)
    assert not attempt.is_closed
    attempt.tick(160)
    assert attempt.is_closed and not attempt.answers.keys() - {"a"} and attempt.at_fault == {"b", "c"}
    assert set(attempt.failed) == {"b", "c"} and "deadline of 60 s" in attempt.failed["b"]
    assert attempt.pop_actions() == [Withdraw("b"), Withdraw("c")] and attempt.pop_actions() == []


def test_it_closes_early_when_enough_are_in() -> None:
    attempt = opened(policy=AttemptPolicy(60.0, close_at=2))
    answer(attempt, "c", 101)
    answer(attempt, "b", 102)
    assert attempt.is_closed and list(attempt.answers) == ["c", "b"]
    assert "before it had answered" in attempt.failed["a"]


def test_answers_are_told_apart() -> None:
    attempt = opened("ab")
    assert answer(attempt, "a", 101) is Verdict.ACCEPTED
    assert answer(attempt, "a", 102) is Verdict.DUPLICATE
    assert answer(attempt, "z", 102) is Verdict.NOT_ASKED
    attempt.fail("b", "no")
    assert attempt.is_closed
    assert answer(attempt, "b", 104) is Verdict.LATE
    assert answer(attempt, "a", 104) is Verdict.DUPLICATE


def test_a_failed_client_cannot_answer_any_more() -> None:
    attempt = opened()
    attempt.fail("a", "its update was refused")
    assert answer(attempt, "a", 102) is Verdict.FAILED
    attempt.fail("a", "again")
    assert attempt.failed["a"] == "its update was refused"


def test_a_disconnected_client_has_a_grace_period() -> None:
    attempt = opened()
    attempt.disconnected("a", 110)
    attempt.disconnected("a", 112)
    assert attempt.due_at == 115
    attempt.tick(114.9)
    attempt.connected("a")
    attempt.tick(120)
    assert "a" in pending(attempt) and attempt.due_at == 160
    attempt.disconnected("a", 130)
    attempt.tick(135)
    assert "connection was lost" in attempt.failed["a"]
    attempt.disconnected("b", 156)
    assert attempt.due_at == 160


def test_an_upload_that_stops_goes_to_disk_and_then_its_client_has_failed() -> None:
    attempt, upload = opened(), object()
    attempt.begin_upload("a", "key", upload, 100)
    attempt.tick(150)
    assert pending(attempt) == ["a", "b", "c"], "it waits for a window, as long as that takes"
    attempt.memory_requested("a", upload, 150)
    attempt.memory_granted("a", upload, 151)
    attempt.piece_received("a", upload, 10, 152, is_last=False)
    attempt.tick(153.9)
    assert attempt.pop_actions() == []
    attempt.tick(154)
    assert attempt.pop_actions() == [Spill("a", upload)]
    attempt = opened()
    attempt.begin_upload("a", "key", upload, 100)
    attempt.memory_granted("a", upload, 101)
    attempt.tick(121)
    assert "no bytes for 20 s" in attempt.failed["a"]
    assert attempt.pop_actions() == [Discard("a", upload), Withdraw("a")]


def test_an_upload_waits_for_memory_while_others_release_some() -> None:
    attempt, upload = opened(), object()
    attempt.begin_upload("a", "key", upload, 100)
    attempt.memory_requested("a", upload, 100)
    attempt.tick(102, memory_freed_at=101)
    assert attempt.pop_actions() == []
    attempt.tick(103, memory_freed_at=101)
    assert attempt.pop_actions() == [Spill("a", upload)]
    attempt.tick(140, memory_freed_at=101)
    assert attempt.pop_actions() == [], "once"


def test_another_answer_of_the_same_client_replaces_the_first() -> None:
    attempt, first, second = opened(), object(), object()
    attempt.begin_upload("a", "first", first, 100)
    assert attempt.find_upload("a", "first") is first and attempt.find_upload("a", "second") is None
    attempt.begin_upload("a", "second", second, 101)
    assert attempt.pop_actions() == [Discard("a", first)]
    assert attempt.begin_commit("a", first) is Verdict.SUPERSEDED
    assert attempt.verdict_for_upload("a", first) is Verdict.SUPERSEDED
    assert attempt.begin_commit("a", second) is Verdict.ACCEPTED


def test_an_attempt_waits_for_a_commit_that_has_begun() -> None:
    attempt, upload = opened("ab"), object()
    attempt.begin_upload("a", "key", upload, 100)
    assert attempt.begin_commit("a", upload) is Verdict.ACCEPTED
    assert attempt.verdict_for("a") is Verdict.COMMITTING
    attempt.disconnected("a", 101)
    attempt.fail("a", "its client says so")
    attempt.tick(160)
    assert not attempt.is_closed and list(attempt.failed) == ["b"] and attempt.due_at > 1e9
    attempt.committed("a")
    assert attempt.is_closed and list(attempt.answers) == ["a"]


def test_a_commit_that_fails_costs_its_client_its_place() -> None:
    attempt, upload = opened("ab"), object()
    attempt.begin_upload("a", "key", upload, 100)
    attempt.begin_commit("a", upload)
    attempt.commit_failed("a", "the disk is full")
    assert attempt.failed == {"a": "the disk is full"} and not attempt.at_fault
    assert attempt.pop_actions() == [Discard("a", upload), Withdraw("a")]


def test_a_suspension_of_the_server_moves_all_deadlines() -> None:
    attempt, upload = opened(), object()
    attempt.begin_upload("a", "key", upload, 100)
    attempt.memory_granted("a", upload, 100)
    attempt.disconnected("b", 100)
    attempt.piece_sent("c", 10, 100, is_last=False)
    attempt.pause(30)
    attempt.tick(130)
    assert pending(attempt) == ["a", "b", "c"]
    attempt.tick(135)
    assert list(attempt.failed) == ["b"]
    attempt.tick(150)
    assert list(attempt.failed) == ["b", "a", "c"]
    assert opened().due_at == 160


def test_an_attempt_without_clients_is_closed_and_counts_for_nothing() -> None:
    attempt = opened("")
    assert attempt.is_closed and not attempt.answers


def test_an_event_looks_at_no_other_client() -> None:
    """With ten thousand clients, the timers come up for the one client that something is due for."""
    clients = [f"c{number}" for number in range(10_000)]
    attempt = TaskAttempt(1, clients, AttemptPolicy(60.0), 0.0)
    for number, client in enumerate(clients):
        attempt.disconnected(client, number / 1000)
    attended: list[str] = []
    check_timeouts = attempt._check_timeouts
    attempt._check_timeouts = lambda client, state, now: (attended.append(client), check_timeouts(client, state, now))  # type: ignore[method-assign,assignment,func-returns-value]
    for number in range(100):
        attempt.tick(5.0 + number / 1000)
    assert attended == clients[:100] and list(attempt.failed) == clients[:100]


HISTORIES = int(os.environ.get("FLCORE_HISTORIES", "1000"))
"""How many are drawn: a hundred times as many in `make stress`."""

NAMES = st.sampled_from("abcd")


class Plain:
    """What a client is at, in the model: everything is worked out anew at each step."""

    def __init__(self) -> None:
        self.lost: float | None = None
        self.reading: float | None = None
        self.upload: object | None = None
        self.phase, self.quiet, self.since, self.is_spilled = "none", 0.0, 0.0, False

    def enter(self, phase: str, now: float) -> None:
        if self.phase in ("whole", "committing"):
            return
        if self.phase in ("queued", "waiting"):
            self.quiet += now - self.since  # what it waited for the server does not count
        self.phase, self.since = phase, now

    def spills_at(self, memory_freed_at: float) -> float:
        if self.is_spilled or self.phase not in ("waiting", "moving"):
            return math.inf
        return (max(self.since, memory_freed_at) if self.phase == "waiting" else self.quiet) + 2.0

    @property
    def is_overdue_at(self) -> float:
        times = [math.inf]
        if self.lost is not None:
            times.append(self.lost + 3.0)
        if self.reading is not None:
            times.append(self.reading + 8.0)
        if self.phase == "moving":
            times.append(self.quiet + 8.0)
        return min(times)

    def pause(self, seconds: float) -> None:
        self.lost = None if self.lost is None else self.lost + seconds
        self.reading = None if self.reading is None else self.reading + seconds
        self.quiet, self.since = self.quiet + seconds, self.since + seconds


class Histories(RuleBasedStateMachine):
    """Joins, losses, duplicates, stalls, late and conflicting uploads, deadlines and pauses, in any order.

    The model expects every action, and no other.
    """

    @initialize(close_at=st.none() | st.integers(1, 5), clients=st.lists(NAMES, unique=True, max_size=4))
    def open(self, close_at: int | None, clients: list[str]) -> None:
        self.policy = AttemptPolicy(50.0, close_at, grace_s=3.0, stall_timeout_s=8.0, spill_after_s=2.0)
        self.attempt = TaskAttempt(5, clients, self.policy, 0.0)
        self.now, self.deadline, self.memory_freed_at = 0.0, 50.0, -math.inf
        self.pending = {client: Plain() for client in clients}
        self.answers: list[str] = []
        self.failed: set[str] = set()
        self.at_fault: set[str] = set()
        self.expected: Counter[Action] = Counter()
        self.is_closed = not clients

    def sendable(self, client: str) -> Plain | None:
        """Return what a client is at that has an upload which is not being committed."""
        plain = self.pending.get(client)
        return plain if plain is not None and plain.upload is not None and plain.phase != "committing" else None

    @rule(seconds=st.sampled_from([0.0, 0.5, 1.0, 2.0, 3.0, 5.0, 60.0]), releases=st.booleans())
    def time_passes(self, seconds: float, releases: bool) -> None:
        self.now += seconds
        self.memory_freed_at = self.now - 0.5 if releases else self.memory_freed_at
        self.attempt.tick(self.now, self.memory_freed_at)
        assert self.attempt.due_at > self.now, "what is due was seen to"
        if self.is_closed:
            return
        for client, plain in sorted(self.pending.items()):
            if plain.phase == "committing":
                continue
            if self.now >= plain.is_overdue_at:
                self.fail(client)
            elif self.now >= plain.spills_at(self.memory_freed_at):
                plain.is_spilled = True
                self.expected[Spill(client, plain.upload)] += 1
        if self.now >= self.deadline:
            self.deadline = math.inf
            for client, plain in sorted(self.pending.items()):
                if plain.phase != "committing":
                    self.fail(client, is_at_fault=plain.lost is None and plain.phase not in ("queued", "waiting"))
        self.close_if_done()

    @rule(seconds=st.sampled_from([0.7, 4.0, 100.0]))
    def the_server_stands_still(self, seconds: float) -> None:
        self.now += seconds
        self.attempt.pause(seconds)
        self.deadline += seconds
        for plain in self.pending.values():
            plain.pause(seconds)

    @rule(client=NAMES)
    def lose(self, client: str) -> None:
        self.attempt.disconnected(client, self.now)
        if client in self.pending and self.pending[client].lost is None:
            self.pending[client].lost = self.now

    @rule(client=NAMES)
    def come_back(self, client: str) -> None:
        self.attempt.connected(client)
        if client in self.pending:
            self.pending[client].lost = None

    @rule(client=NAMES, is_last=st.booleans())
    def read(self, client: str, is_last: bool) -> None:
        self.attempt.piece_sent(client, 1, self.now, is_last=is_last)
        if client in self.pending:
            self.pending[client].reading = None if is_last else self.now

    @rule(client=NAMES)
    def wait_for_a_window_to_read(self, client: str) -> None:
        self.attempt.download_queued(client)
        if client in self.pending:
            self.pending[client].reading = None

    @rule(client=NAMES, is_new=st.booleans(), is_staged=st.booleans())
    def announce(self, client: str, is_new: bool, is_staged: bool) -> None:
        plain = self.pending.get(client, Plain())
        upload = object() if is_new or plain.upload is None else plain.upload
        verdict = self.attempt.begin_upload(client, str(id(upload)), upload, self.now, is_staged=is_staged)
        assert verdict is self.verdict(client)
        if verdict is not Verdict.ACCEPTED:
            return
        if upload is not plain.upload:
            if plain.upload is not None:
                self.expected[Discard(client, plain.upload)] += 1
            plain.upload, plain.quiet, plain.is_spilled = upload, self.now, False
            plain.phase = "moving" if is_staged else "whole"
        plain.enter("queued", self.now)
        assert self.attempt.find_upload(client, str(id(upload))) is upload

    @rule(client=NAMES, event=st.sampled_from(["memory_requested", "memory_granted", "upload_call_ended"]))
    def go_on(self, client: str, event: str) -> None:
        if (plain := self.sendable(client)) is not None:
            getattr(self.attempt, event)(client, plain.upload, self.now)
            plain.enter("waiting" if event == "memory_requested" else "moving", self.now)

    @rule(client=NAMES, is_last=st.booleans())
    def send(self, client: str, is_last: bool) -> None:
        plain = self.sendable(client)
        if plain is not None and plain.phase == "moving":
            self.attempt.piece_received(client, plain.upload, 1, self.now, is_last=is_last)
            plain.quiet, plain.phase = self.now, "whole" if is_last else "moving"

    @rule(client=NAMES)
    def send_by_an_upload_that_was_let_go(self, client: str) -> None:
        stranger = object()
        self.attempt.piece_received(client, stranger, 1, self.now, is_last=True)
        self.attempt.memory_granted(client, stranger, self.now)
        assert not self.attempt.is_current(client, stranger)
        assert self.attempt.begin_commit(client, stranger) is not Verdict.ACCEPTED

    @rule(client=NAMES)
    def begin_commit(self, client: str) -> None:
        plain = self.sendable(client)
        if plain is not None and plain.phase == "whole":
            assert self.attempt.begin_commit(client, plain.upload) is Verdict.ACCEPTED
            plain.phase = "committing"

    @rule(client=NAMES, succeeds=st.booleans())
    def end_commit(self, client: str, succeeds: bool) -> None:
        if self.verdict(client) is not Verdict.COMMITTING:
            return
        if succeeds:
            upload = self.pending.pop(client).upload
            self.attempt.committed(client)
            self.answers.append(client)
            assert self.attempt.answers[client] is upload
        else:
            self.attempt.commit_failed(client, "the disk is full")
            self.fail(client)
        self.close_if_done()

    @rule(client=NAMES, is_at_fault=st.booleans())
    def say_that_it_failed(self, client: str, is_at_fault: bool) -> None:
        self.attempt.fail(client, "fault", is_at_fault=is_at_fault)
        if self.verdict(client) is Verdict.ACCEPTED:
            self.fail(client, is_at_fault=is_at_fault)
            self.close_if_done()

    def fail(self, client: str, is_at_fault: bool = False) -> None:
        plain = self.pending.pop(client)
        self.failed.add(client)
        self.at_fault |= {client} if is_at_fault else set()
        if plain.upload is not None:
            self.expected[Discard(client, plain.upload)] += 1
        self.expected[Withdraw(client)] += 1

    def close_if_done(self) -> None:
        enough = self.policy.close_at is not None and len(self.answers) >= self.policy.close_at
        is_committing = any(plain.phase == "committing" for plain in self.pending.values())
        if not self.is_closed and not is_committing and (enough or not self.pending):
            for client in sorted(self.pending):
                self.fail(client)
            self.is_closed = True

    def verdict(self, client: str) -> Verdict:
        if client in self.pending:
            is_committing = self.pending[client].phase == "committing"
            return Verdict.COMMITTING if is_committing else Verdict.ACCEPTED
        if client in self.answers:
            return Verdict.DUPLICATE
        if client not in self.failed:
            return Verdict.NOT_ASKED
        return Verdict.LATE if self.is_closed else Verdict.FAILED

    @invariant()
    def both_agree(self) -> None:
        if not hasattr(self, "attempt"):
            return
        assert list(self.attempt.answers) == self.answers
        assert set(self.attempt.failed) == self.failed and self.attempt.at_fault == self.at_fault
        assert set(pending(self.attempt)) == set(self.pending)
        assert self.attempt.is_closed == self.is_closed
        for client in "abcd":
            assert self.attempt.verdict_for(client) is self.verdict(client)
        assert Counter(self.attempt.pop_actions()) == self.expected
        self.expected.clear()

    def teardown(self) -> None:
        if hasattr(self, "attempt"):
            for client in [client for client in self.pending if self.verdict(client) is Verdict.ACCEPTED]:
                self.fail(client)
            self.attempt.abandon()
            assert self.attempt.is_closed and Counter(self.attempt.pop_actions()) == self.expected


Histories.TestCase.settings = settings(max_examples=HISTORIES, stateful_step_count=25, deadline=None, print_blob=True)
TestHistories = Histories.TestCase
