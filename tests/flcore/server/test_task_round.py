"""The round as a state machine: thousands of histories against a model in dictionaries, and not a second of waiting."""

import math
import os
from collections import Counter

import hypothesis.strategies as st
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from flcore.server.task_round import Action, Discard, Release, RoundPolicy, Spill, TaskRound, Verdict

RULES = RoundPolicy(deadline_s=60.0, grace_s=5.0, stall_timeout_s=20.0)


def opened(clients: str = "abc", rules: RoundPolicy = RULES) -> TaskRound:
    return TaskRound(7, list(clients), rules, now=100.0)


def answer(round_: TaskRound, client: str, now: float, key: str = "key") -> Verdict:
    """Send an answer of metrics alone, from its announcement to its commit."""
    upload = object()
    verdict = round_.begin_upload(client, key, upload, now, is_staged=False)
    if verdict is Verdict.ACCEPTED:
        verdict = round_.begin_commit(client, upload)
        round_.committed(client)
    return verdict


def test_it_closes_when_all_have_answered_or_failed() -> None:
    round_ = opened()
    assert answer(round_, "a", 101) is Verdict.ACCEPTED
    round_.fail("b", "out of memory")
    assert not round_.is_closed and round_.pending == ["c"]
    assert answer(round_, "c", 103) is Verdict.ACCEPTED
    assert round_.is_closed and list(round_.answers) == ["a", "c"]
    assert round_.failed == {"b": "out of memory"} and round_.at_fault == {"b"}


def test_it_closes_at_its_deadline_and_says_who_is_missing() -> None:
    round_ = opened()
    answer(round_, "a", 101)
    assert round_.due_at == 160
    round_.tick(159.9)
    assert not round_.is_closed
    round_.tick(160)
    assert round_.is_closed and not round_.answers.keys() - {"a"} and round_.at_fault == {"b", "c"}
    assert set(round_.failed) == {"b", "c"} and "deadline of 60 s" in round_.failed["b"]
    assert round_.pop_actions() == [Release("b"), Release("c")] and round_.pop_actions() == []


def test_it_closes_early_when_enough_are_in() -> None:
    round_ = opened(rules=RoundPolicy(60.0, close_at=2))
    answer(round_, "c", 101)
    answer(round_, "b", 102)
    assert round_.is_closed and list(round_.answers) == ["c", "b"]
    assert "before it had answered" in round_.failed["a"]


def test_answers_are_told_apart() -> None:
    round_ = opened("ab")
    assert answer(round_, "a", 101) is Verdict.ACCEPTED
    assert answer(round_, "a", 102) is Verdict.DUPLICATE
    assert answer(round_, "z", 102) is Verdict.NOT_ASKED
    round_.fail("b", "no")
    assert round_.is_closed
    assert answer(round_, "b", 104) is Verdict.LATE
    assert answer(round_, "a", 104) is Verdict.DUPLICATE


def test_a_failed_client_cannot_answer_any_more() -> None:
    round_ = opened()
    round_.fail("a", "its update was refused")
    assert answer(round_, "a", 102) is Verdict.FAILED
    round_.fail("a", "again")
    assert round_.failed["a"] == "its update was refused"


def test_a_lost_client_has_a_grace() -> None:
    round_ = opened()
    round_.disconnected("a", 110)
    round_.disconnected("a", 112)
    assert round_.due_at == 115
    round_.tick(114.9)
    round_.connected("a")
    round_.tick(120)
    assert "a" in round_.pending and round_.due_at == 160
    round_.disconnected("a", 130)
    round_.tick(135)
    assert "connection was lost" in round_.failed["a"]
    round_.disconnected("b", 156)
    assert round_.due_at == 160


def test_an_upload_that_stops_goes_to_disk_and_then_its_client_has_failed() -> None:
    round_, upload = opened(), object()
    round_.begin_upload("a", "key", upload, 100)
    round_.tick(150)
    assert round_.pending == ["a", "b", "c"], "it waits for its turn, as long as that takes"
    round_.memory_requested("a", upload, 150)
    round_.memory_granted("a", upload, 151)
    round_.piece_received("a", upload, 10, 152, is_last=False)
    round_.tick(153.9)
    assert round_.pop_actions() == []
    round_.tick(154)
    assert round_.pop_actions() == [Spill("a", upload)]
    round_ = opened()
    round_.begin_upload("a", "key", upload, 100)
    round_.memory_granted("a", upload, 101)
    round_.tick(121)
    assert "no bytes for 20 s" in round_.failed["a"]
    assert round_.pop_actions() == [Discard("a", upload), Release("a")]


def test_an_upload_waits_for_memory_while_others_release_some() -> None:
    round_, upload = opened(), object()
    round_.begin_upload("a", "key", upload, 100)
    round_.memory_requested("a", upload, 100)
    round_.tick(102, memory_freed_at=101)
    assert round_.pop_actions() == []
    round_.tick(103, memory_freed_at=101)
    assert round_.pop_actions() == [Spill("a", upload)]
    round_.tick(140, memory_freed_at=101)
    assert round_.pop_actions() == [], "once"


def test_another_answer_of_the_same_client_takes_the_place_of_the_first() -> None:
    round_, first, second = opened(), object(), object()
    round_.begin_upload("a", "first", first, 100)
    assert round_.find_upload("a", "first") is first and round_.find_upload("a", "second") is None
    round_.begin_upload("a", "second", second, 101)
    assert round_.pop_actions() == [Discard("a", first)]
    assert round_.begin_commit("a", first) is Verdict.FAILED
    assert round_.begin_commit("a", second) is Verdict.ACCEPTED


def test_a_round_waits_for_a_commit_that_has_begun() -> None:
    round_, upload = opened("ab"), object()
    round_.begin_upload("a", "key", upload, 100)
    assert round_.begin_commit("a", upload) is Verdict.ACCEPTED
    assert round_.verdict_for("a") is Verdict.COMMITTING
    round_.disconnected("a", 101)
    round_.fail("a", "its client says so")
    round_.tick(160)
    assert not round_.is_closed and list(round_.failed) == ["b"] and round_.due_at > 1e9
    round_.committed("a")
    assert round_.is_closed and list(round_.answers) == ["a"]


def test_a_commit_that_fails_costs_its_client_its_place() -> None:
    round_, upload = opened("ab"), object()
    round_.begin_upload("a", "key", upload, 100)
    round_.begin_commit("a", upload)
    round_.commit_failed("a", "the disk is full")
    assert round_.failed == {"a": "the disk is full"} and not round_.at_fault
    assert round_.pop_actions() == [Discard("a", upload), Release("a")]


def test_time_in_which_the_server_stood_still_counts_for_nobody() -> None:
    round_, upload = opened(), object()
    round_.begin_upload("a", "key", upload, 100)
    round_.memory_granted("a", upload, 100)
    round_.disconnected("b", 100)
    round_.piece_sent("c", 10, 100, is_last=False)
    round_.pause(30)
    round_.tick(130)
    assert round_.pending == ["a", "b", "c"]
    round_.tick(135)
    assert list(round_.failed) == ["b"]
    round_.tick(150)
    assert list(round_.failed) == ["b", "a", "c"]
    assert opened().due_at == 160


def test_a_round_without_clients_is_closed_and_counts_for_nothing() -> None:
    round_ = opened("")
    assert round_.is_closed and not round_.answers


def test_an_event_looks_at_no_other_client() -> None:
    """With ten thousand clients, the timers come up for the one client that something is due for."""
    clients = [f"c{number}" for number in range(10_000)]
    round_ = TaskRound(1, clients, RoundPolicy(60.0), 0.0)
    for number, client in enumerate(clients):
        round_.disconnected(client, number / 1000)
    attended: list[str] = []
    check_timeouts = round_._check_timeouts
    round_._check_timeouts = lambda client, state, now: (attended.append(client), check_timeouts(client, state, now))  # type: ignore[method-assign,assignment,func-returns-value]
    for number in range(100):
        round_.tick(5.0 + number / 1000)
    assert attended == clients[:100] and list(round_.failed) == clients[:100]


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
        self.limits = RoundPolicy(50.0, close_at, grace_s=3.0, stall_timeout_s=8.0, spill_after_s=2.0)
        self.round = TaskRound(5, clients, self.limits, 0.0)
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
        self.round.tick(self.now, self.memory_freed_at)
        assert self.round.due_at > self.now, "what is due was seen to"
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
        self.round.pause(seconds)
        self.deadline += seconds
        for plain in self.pending.values():
            plain.pause(seconds)

    @rule(client=NAMES)
    def lose(self, client: str) -> None:
        self.round.disconnected(client, self.now)
        if client in self.pending and self.pending[client].lost is None:
            self.pending[client].lost = self.now

    @rule(client=NAMES)
    def come_back(self, client: str) -> None:
        self.round.connected(client)
        if client in self.pending:
            self.pending[client].lost = None

    @rule(client=NAMES, is_last=st.booleans())
    def read(self, client: str, is_last: bool) -> None:
        self.round.piece_sent(client, 1, self.now, is_last=is_last)
        if client in self.pending:
            self.pending[client].reading = None if is_last else self.now

    @rule(client=NAMES)
    def wait_for_a_turn_to_read(self, client: str) -> None:
        self.round.download_queued(client)
        if client in self.pending:
            self.pending[client].reading = None

    @rule(client=NAMES, is_new=st.booleans(), is_staged=st.booleans())
    def announce(self, client: str, is_new: bool, is_staged: bool) -> None:
        plain = self.pending.get(client, Plain())
        upload = object() if is_new or plain.upload is None else plain.upload
        verdict = self.round.begin_upload(client, str(id(upload)), upload, self.now, is_staged=is_staged)
        assert verdict is self.verdict(client)
        if verdict is not Verdict.ACCEPTED:
            return
        if upload is not plain.upload:
            if plain.upload is not None:
                self.expected[Discard(client, plain.upload)] += 1
            plain.upload, plain.quiet, plain.is_spilled = upload, self.now, False
            plain.phase = "moving" if is_staged else "whole"
        plain.enter("queued", self.now)
        assert self.round.find_upload(client, str(id(upload))) is upload

    @rule(client=NAMES, event=st.sampled_from(["memory_requested", "memory_granted", "upload_call_ended"]))
    def go_on(self, client: str, event: str) -> None:
        if (plain := self.sendable(client)) is not None:
            getattr(self.round, event)(client, plain.upload, self.now)
            plain.enter("waiting" if event == "memory_requested" else "moving", self.now)

    @rule(client=NAMES, is_last=st.booleans())
    def send(self, client: str, is_last: bool) -> None:
        plain = self.sendable(client)
        if plain is not None and plain.phase == "moving":
            self.round.piece_received(client, plain.upload, 1, self.now, is_last=is_last)
            plain.quiet, plain.phase = self.now, "whole" if is_last else "moving"

    @rule(client=NAMES)
    def send_by_an_upload_that_was_let_go(self, client: str) -> None:
        stranger = object()
        self.round.piece_received(client, stranger, 1, self.now, is_last=True)
        self.round.memory_granted(client, stranger, self.now)
        assert not self.round.is_current(client, stranger)
        assert self.round.begin_commit(client, stranger) is not Verdict.ACCEPTED

    @rule(client=NAMES)
    def begin_commit(self, client: str) -> None:
        plain = self.sendable(client)
        if plain is not None and plain.phase == "whole":
            assert self.round.begin_commit(client, plain.upload) is Verdict.ACCEPTED
            plain.phase = "committing"

    @rule(client=NAMES, succeeds=st.booleans())
    def end_commit(self, client: str, succeeds: bool) -> None:
        if self.verdict(client) is not Verdict.COMMITTING:
            return
        if succeeds:
            upload = self.pending.pop(client).upload
            self.round.committed(client)
            self.answers.append(client)
            assert self.round.answers[client] is upload
        else:
            self.round.commit_failed(client, "the disk is full")
            self.fail(client)
        self.close_if_done()

    @rule(client=NAMES, is_at_fault=st.booleans())
    def say_that_it_failed(self, client: str, is_at_fault: bool) -> None:
        self.round.fail(client, "fault", is_at_fault=is_at_fault)
        if self.verdict(client) is Verdict.ACCEPTED:
            self.fail(client, is_at_fault=is_at_fault)
            self.close_if_done()

    def fail(self, client: str, is_at_fault: bool = False) -> None:
        plain = self.pending.pop(client)
        self.failed.add(client)
        self.at_fault |= {client} if is_at_fault else set()
        if plain.upload is not None:
            self.expected[Discard(client, plain.upload)] += 1
        self.expected[Release(client)] += 1

    def close_if_done(self) -> None:
        enough = self.limits.close_at is not None and len(self.answers) >= self.limits.close_at
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
        if not hasattr(self, "round"):
            return
        assert list(self.round.answers) == self.answers
        assert set(self.round.failed) == self.failed and self.round.at_fault == self.at_fault
        assert set(self.round.pending) == set(self.pending)
        assert self.round.is_closed == self.is_closed
        for client in "abcd":
            assert self.round.verdict_for(client) is self.verdict(client)
        assert Counter(self.round.pop_actions()) == self.expected
        self.expected.clear()

    def teardown(self) -> None:
        if hasattr(self, "round"):
            for client in [client for client in self.pending if self.verdict(client) is Verdict.ACCEPTED]:
                self.fail(client)
            self.round.abandon()
            assert self.round.is_closed and Counter(self.round.pop_actions()) == self.expected


Histories.TestCase.settings = settings(max_examples=HISTORIES, stateful_step_count=25, deadline=None, print_blob=True)
TestHistories = Histories.TestCase
