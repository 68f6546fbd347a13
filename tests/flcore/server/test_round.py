"""The round as a state machine: ten thousand faults, and not a second of waiting."""

import random

import pytest

from flcore.server.round import Round, RoundRules, Verdict

RULES = RoundRules(deadline_s=60.0, quorum=2, grace_s=5.0)


def opened(clients: str = "abc", rules: RoundRules = RULES) -> Round:
    return Round(7, list(clients), rules, now=100.0)


def test_it_closes_when_all_have_answered_or_failed() -> None:
    round_ = opened()
    assert round_.answer("a", 7, 101) is Verdict.ACCEPTED
    round_.fail("b", "out of memory", 102)
    assert not round_.is_closed and round_.pending == ["c"] and not round_.has_quorum
    assert round_.answer("c", 7, 103) is Verdict.ACCEPTED
    assert round_.is_closed and round_.has_quorum and round_.closed_at == 103
    assert round_.failed == {"b": "out of memory"}


def test_it_closes_at_its_deadline_and_says_who_is_missing() -> None:
    round_ = opened()
    round_.answer("a", 7, 101)
    assert round_.due_at == 160
    round_.tick(159.9)
    assert not round_.is_closed
    round_.tick(160)
    assert round_.is_closed and not round_.has_quorum
    assert set(round_.failed) == {"b", "c"} and "deadline of 60 s" in round_.failed["b"]


def test_it_closes_early_when_enough_are_in() -> None:
    round_ = opened(rules=RoundRules(60.0, quorum=1, close_at=2))
    round_.answer("c", 7, 101)
    round_.answer("b", 7, 102)
    assert round_.is_closed and list(round_.answered) == ["c", "b"]
    assert "before it had answered" in round_.failed["a"]


def test_answers_are_told_apart() -> None:
    round_ = opened("ab")
    assert round_.answer("a", 7, 101) is Verdict.ACCEPTED
    assert round_.answer("a", 7, 102) is Verdict.DUPLICATE
    assert round_.answer("b", 6, 102) is Verdict.STALE
    assert round_.answer("b", 8, 102) is Verdict.NOT_ASKED
    assert round_.answer("z", 7, 102) is Verdict.NOT_ASKED
    round_.fail("b", "no", 103)
    assert round_.is_closed
    assert round_.answer("b", 7, 104) is Verdict.LATE
    assert round_.answer("a", 7, 104) is Verdict.DUPLICATE


def test_a_failed_client_cannot_answer_any_more() -> None:
    round_ = opened()
    round_.fail("a", "its update was refused", 101)
    assert round_.answer("a", 7, 102) is Verdict.FAILED
    round_.fail("a", "again", 103)
    assert round_.failed["a"] == "its update was refused"


def test_an_answer_at_the_deadline_is_late_even_if_nobody_has_looked_at_the_clock() -> None:
    round_ = opened()
    assert round_.answer("a", 7, 160) is Verdict.LATE
    assert round_.is_closed


def test_a_lost_client_has_a_grace() -> None:
    round_ = opened()
    round_.lose("a", 110)
    round_.lose("a", 112)
    assert round_.due_at == 115
    round_.tick(114.9)
    assert "a" in round_.pending
    round_.find("a")
    round_.tick(120)
    assert "a" in round_.pending and round_.due_at == 160
    round_.lose("a", 130)
    round_.tick(135)
    assert "connection was lost" in round_.failed["a"]
    round_.lose("b", 156)
    assert round_.due_at == 160


def test_a_round_without_clients_is_closed_and_counts_for_nothing() -> None:
    round_ = opened("")
    assert round_.is_closed and not round_.has_quorum


@pytest.mark.parametrize("seed", range(200))
def test_whatever_happens_the_books_balance(seed: int) -> None:
    chance = random.Random(seed)
    clients = [f"c{i}" for i in range(chance.randrange(1, 8))]
    close_at = chance.choice([None, chance.randrange(1, 9)])
    rules = RoundRules(50.0, quorum=chance.randrange(1, 4), close_at=close_at, grace_s=3.0)
    round_, now, accepted = Round(5, clients, rules, 0.0), 0.0, []
    for _ in range(60):
        now += chance.random() * 2
        client = chance.choice([*clients, "stranger"])
        was_closed = round_.is_closed
        match chance.randrange(6):
            case 0 | 1:
                if round_.answer(client, chance.choice([5, 5, 5, 4, 6]), now) is Verdict.ACCEPTED:
                    accepted.append(client)
                    assert not was_closed
            case 2:
                round_.fail(client, "fault", now)
            case 3:
                round_.lose(client, now)
            case 4:
                round_.find(client)
            case _:
                round_.tick(now)
        assert accepted == list(round_.answered)
        assert len(set(accepted)) == len(accepted)
        assert not set(round_.answered) & set(round_.failed)
        assert set(round_.answered) | set(round_.failed) | set(round_.pending) == set(clients)
        assert not was_closed or round_.is_closed
        if round_.is_closed:
            assert not round_.pending
    round_.tick(1e9)
    assert round_.is_closed
    assert round_.has_quorum == (len(accepted) >= rules.quorum)
