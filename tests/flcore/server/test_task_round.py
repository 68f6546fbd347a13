"""The round as a state machine: thousands of histories against a model in dictionaries, and not a second of waiting."""

import os

import hypothesis.strategies as st
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from flcore.server.task_round import Discard, Release, RoundRules, Spill, TaskRound, Verdict

RULES = RoundRules(deadline_s=60.0, quorum=2, grace_s=5.0, stall_timeout_s=20.0)


def opened(clients: str = "abc", rules: RoundRules = RULES) -> TaskRound:
    return TaskRound(7, list(clients), rules, now=100.0)


def answer(round_: TaskRound, client: str, now: float, key: str = "key") -> Verdict:
    """Send an answer of metrics alone, from its announcement to its commit."""
    upload = object()
    verdict = round_.begin_upload(client, key, upload, now, is_staged=False)
    if verdict is Verdict.ACCEPTED:
        verdict = round_.begin_commit(client, upload)
        round_.committed(client, client, now)
    return verdict


def test_it_closes_when_all_have_answered_or_failed() -> None:
    round_ = opened()
    assert answer(round_, "a", 101) is Verdict.ACCEPTED
    round_.fail("b", "out of memory", 102)
    assert not round_.is_closed and round_.pending == ["c"] and not round_.has_quorum
    assert answer(round_, "c", 103) is Verdict.ACCEPTED
    assert round_.is_closed and round_.has_quorum and round_.closed_at == 103
    assert round_.failed == {"b": "out of memory"} and round_.at_fault == {"b"}
    assert {client: each.seconds for client, each in round_.answers.items()} == {"a": 1, "c": 3}


def test_it_closes_at_its_deadline_and_says_who_is_missing() -> None:
    round_ = opened()
    answer(round_, "a", 101)
    assert round_.due_at == 160
    round_.tick(159.9)
    assert not round_.is_closed
    round_.tick(160)
    assert round_.is_closed and not round_.has_quorum and round_.at_fault == {"b", "c"}
    assert set(round_.failed) == {"b", "c"} and "deadline of 60 s" in round_.failed["b"]
    assert round_.take_actions() == [Release("b"), Release("c")] and round_.take_actions() == []


def test_it_closes_early_when_enough_are_in() -> None:
    round_ = opened(rules=RoundRules(60.0, quorum=1, close_at=2))
    answer(round_, "c", 101)
    answer(round_, "b", 102)
    assert round_.is_closed and list(round_.answers) == ["c", "b"]
    assert "before it had answered" in round_.failed["a"]


def test_answers_are_told_apart() -> None:
    round_ = opened("ab")
    assert answer(round_, "a", 101) is Verdict.ACCEPTED
    assert answer(round_, "a", 102) is Verdict.DUPLICATE
    assert answer(round_, "z", 102) is Verdict.NOT_ASKED
    round_.fail("b", "no", 103)
    assert round_.is_closed
    assert answer(round_, "b", 104) is Verdict.LATE
    assert answer(round_, "a", 104) is Verdict.DUPLICATE


def test_a_failed_client_cannot_answer_any_more() -> None:
    round_ = opened()
    round_.fail("a", "its update was refused", 101)
    assert answer(round_, "a", 102) is Verdict.FAILED
    round_.fail("a", "again", 103)
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
    round_.room_wanted("a", upload, 150)
    round_.room_found("a", upload, 151)
    round_.piece_taken("a", upload, 10, 152, is_last=False)
    round_.tick(153.9)
    assert round_.take_actions() == []
    round_.tick(154)
    assert round_.take_actions() == [Spill("a", upload)]
    round_ = opened()
    round_.begin_upload("a", "key", upload, 100)
    round_.room_found("a", upload, 101)
    round_.tick(121)
    assert "no bytes for 20 s" in round_.failed["a"]
    assert round_.take_actions() == [Discard("a", upload), Release("a")]


def test_an_upload_waits_for_room_as_long_as_others_give_some_back() -> None:
    round_, upload = opened(), object()
    round_.begin_upload("a", "key", upload, 100)
    round_.room_wanted("a", upload, 100)
    round_.tick(102, room_released_at=101)
    assert round_.take_actions() == []
    round_.tick(103, room_released_at=101)
    assert round_.take_actions() == [Spill("a", upload)]
    round_.tick(140, room_released_at=101)
    assert round_.take_actions() == [], "once"


def test_another_answer_of_the_same_client_takes_the_place_of_the_first() -> None:
    round_, first, second = opened(), object(), object()
    round_.begin_upload("a", "first", first, 100)
    assert round_.upload_of("a", "first") is first and round_.upload_of("a", "second") is None
    round_.begin_upload("a", "second", second, 101)
    assert round_.take_actions() == [Discard("a", first)]
    assert round_.begin_commit("a", first) is Verdict.FAILED
    assert round_.begin_commit("a", second) is Verdict.ACCEPTED


def test_a_round_waits_for_a_commit_that_has_begun() -> None:
    round_, upload = opened("ab"), object()
    round_.begin_upload("a", "key", upload, 100)
    assert round_.begin_commit("a", upload) is Verdict.ACCEPTED
    assert round_.judge("a") is Verdict.COMMITTING
    round_.disconnected("a", 101)
    round_.fail("a", "its client says so", 102)
    round_.tick(160)
    assert not round_.is_closed and list(round_.failed) == ["b"] and round_.due_at > 1e9
    round_.committed("a", "answer", 161)
    assert round_.is_closed and list(round_.answers) == ["a"]


def test_a_commit_that_fails_costs_its_client_its_place() -> None:
    round_, upload = opened("ab"), object()
    round_.begin_upload("a", "key", upload, 100)
    round_.begin_commit("a", upload)
    round_.commit_failed("a", "the disk is full", 101)
    assert round_.failed == {"a": "the disk is full"} and not round_.at_fault
    assert round_.take_actions() == [Discard("a", upload), Release("a")]


def test_time_in_which_the_server_stood_still_counts_for_nobody() -> None:
    round_, upload = opened(), object()
    round_.begin_upload("a", "key", upload, 100)
    round_.room_found("a", upload, 100)
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
    assert round_.is_closed and not round_.has_quorum


def test_ten_thousand_clients_take_no_longer_each_than_a_hundred() -> None:
    """Events are counted, not seconds: what an event looks at must not grow with the number of clients."""
    looked_at = []
    for count in (100, 10_000):
        round_ = TaskRound(1, [f"c{number}" for number in range(count)], RoundRules(60.0), 0.0)
        round_.take_actions()
        steps = 0
        for number in range(count):
            client, upload = f"c{number}", object()
            round_.disconnected(client, 1.0)
            round_.connected(client)
            round_.begin_upload(client, "key", upload, 2.0)
            round_.room_found(client, upload, 2.0)
            round_.piece_taken(client, upload, 1, 3.0, is_last=True)
            round_.tick(3.0)
            steps += len(round_._timers._heap)
            round_.begin_commit(client, upload)
            round_.committed(client, None, 3.0)
        assert round_.is_closed
        looked_at.append(len(round_._timers._heap) / count)
    assert looked_at[1] <= 2 * looked_at[0] + 1


HISTORIES = int(os.environ.get("FLCORE_HISTORIES", "1000"))
"""How many are drawn: a hundred times as many in `make stress`."""

NAMES = st.sampled_from("abcd")


class Histories(RuleBasedStateMachine):
    """Joins, losses, duplicates, stalls, late and conflicting uploads, deadlines and pauses, in any order.

    The model is plain: for each client what it is at, and since when. Everything is worked out anew at each step.
    """

    @initialize(
        quorum=st.integers(0, 4),
        close_at=st.none() | st.integers(1, 5),
        clients=st.lists(NAMES, unique=True, max_size=4),
    )
    def open(self, quorum: int, close_at: int | None, clients: list[str]) -> None:
        self.limits = RoundRules(50.0, quorum, close_at, grace_s=3.0, stall_timeout_s=8.0, spill_after_s=2.0)
        self.round = TaskRound(5, clients, self.limits, 0.0)
        self.now, self.deadline = 0.0, 50.0
        self.pending = set(clients)
        self.answers: list[str] = []
        self.failed: set[str] = set()
        self.lost: dict[str, float] = {}
        self.reading: dict[str, float] = {}
        self.quiet: dict[str, float] = {}
        self.uploads: dict[str, object] = {}
        self.whole: set[str] = set()
        self.committing: set[str] = set()
        self.alive: set[object] = set()
        self.is_closed = not clients

    @property
    def clients(self) -> set[str]:
        return set(self.round.clients)

    @rule(seconds=st.sampled_from([0.0, 0.5, 1.0, 2.0, 3.0, 5.0, 60.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        self.round.tick(self.now)
        assert self.round.due_at > self.now, "what is due was seen to"
        if self.is_closed:
            return
        for client in sorted(self.pending - self.committing):
            is_lost = client in self.lost and self.now >= self.lost[client] + 3.0
            sending = client in self.uploads and client in self.quiet and self.now >= self.quiet[client] + 8.0
            reading = client in self.reading and self.now >= self.reading[client] + 8.0
            if is_lost or sending or reading or self.now >= self.deadline:
                self.fail(client)
        if self.now >= self.deadline:
            self.deadline = float("inf")
        self.close_if_done()

    @rule(seconds=st.sampled_from([0.7, 4.0, 100.0]))
    def the_server_stands_still(self, seconds: float) -> None:
        self.now += seconds
        self.round.pause(seconds)
        self.deadline += seconds
        for since in (self.lost, self.reading, self.quiet):
            for client in since:
                since[client] += seconds

    @rule(client=NAMES)
    def lose(self, client: str) -> None:
        self.round.disconnected(client, self.now)
        if client in self.pending:
            self.lost.setdefault(client, self.now)

    @rule(client=NAMES)
    def come_back(self, client: str) -> None:
        self.round.connected(client)
        self.lost.pop(client, None)

    @rule(client=NAMES, is_last=st.booleans())
    def read(self, client: str, is_last: bool) -> None:
        self.round.piece_sent(client, 1, self.now, is_last=is_last)
        if is_last:
            self.reading.pop(client, None)
        else:
            self.reading[client] = self.now

    @rule(client=NAMES, is_new=st.booleans())
    def announce(self, client: str, is_new: bool) -> None:
        held = self.uploads.get(client)
        upload = object() if is_new or held is None else held
        verdict = self.round.begin_upload(client, str(id(upload)), upload, self.now)
        assert verdict is self.verdict(client)
        if verdict is Verdict.ACCEPTED:
            if upload is not held:
                self.alive.discard(held)
                self.alive.add(upload)
                self.whole.discard(client)
                self.quiet[client] = self.now
            self.uploads[client] = upload
            if client not in self.whole:  # a stream that begins anew is no byte
                self.round.room_found(client, upload, self.now)

    @rule(client=NAMES, is_last=st.booleans())
    def send(self, client: str, is_last: bool) -> None:
        upload = self.uploads.get(client)
        if upload is not None and client not in self.whole and client not in self.committing:
            self.round.piece_taken(client, upload, 1, self.now, is_last=is_last)
            self.quiet[client] = self.now
            if is_last:
                self.whole.add(client)
                del self.quiet[client]

    @rule(client=NAMES)
    def send_by_an_upload_that_was_let_go(self, client: str) -> None:
        stranger = object()
        self.round.piece_taken(client, stranger, 1, self.now, is_last=True)
        self.round.room_found(client, stranger, self.now)
        assert not self.round.is_open_for(client, stranger)

    @rule(client=NAMES)
    def begin_commit(self, client: str) -> None:
        upload = self.uploads.get(client)
        if upload is None or client in self.whole:
            verdict = self.round.begin_commit(client, upload or object())
            if verdict is Verdict.ACCEPTED:
                assert upload is not None and self.verdict(client) is Verdict.ACCEPTED
                self.committing.add(client)

    @rule(client=NAMES, succeeds=st.booleans())
    def end_commit(self, client: str, succeeds: bool) -> None:
        if client not in self.committing:
            return
        self.committing.remove(client)
        if succeeds:
            self.round.committed(client, client, self.now)
            self.pending.remove(client)
            self.answers.append(client)
            self.alive.discard(self.uploads.pop(client))
        else:
            self.round.commit_failed(client, "the disk is full", self.now)
            self.fail(client)
        self.close_if_done()

    @rule(client=NAMES)
    def say_that_it_failed(self, client: str) -> None:
        self.round.fail(client, "fault", self.now)
        if client in self.pending - self.committing:
            self.fail(client)
            self.close_if_done()

    def fail(self, client: str) -> None:
        self.pending.discard(client)
        self.failed.add(client)
        self.alive.discard(self.uploads.pop(client, None))

    def close_if_done(self) -> None:
        enough = self.limits.close_at is not None and len(self.answers) >= self.limits.close_at
        if not self.is_closed and not self.committing and (enough or not self.pending):
            for client in sorted(self.pending):
                self.fail(client)
            self.is_closed = True

    def verdict(self, client: str) -> Verdict:
        if client in self.pending:
            return Verdict.COMMITTING if client in self.committing else Verdict.ACCEPTED
        if client in self.answers:
            return Verdict.DUPLICATE
        if client not in self.clients:
            return Verdict.NOT_ASKED
        return Verdict.LATE if self.is_closed else Verdict.FAILED

    @invariant()
    def both_agree(self) -> None:
        if not hasattr(self, "round"):
            return
        assert list(self.round.answers) == self.answers
        assert set(self.round.failed) == self.failed
        assert set(self.round.pending) == self.pending
        assert self.round.is_closed == self.is_closed
        assert self.round.has_quorum == (len(self.answers) >= self.limits.quorum)
        for client in "abcd":
            assert self.round.judge(client) is self.verdict(client)
        for action in self.round.take_actions():
            if isinstance(action, Discard):
                assert action.upload not in self.alive
            elif isinstance(action, Spill):
                assert action.upload in self.alive and action.client in self.pending
            else:
                assert action.client in self.failed


Histories.TestCase.settings = settings(max_examples=HISTORIES, stateful_step_count=25, deadline=None, print_blob=True)
TestHistories = Histories.TestCase
