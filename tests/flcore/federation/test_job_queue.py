"""The queue: which jobs start, in which order, and what each of the others is told."""

import pytest

from flcore.federation.job_queue import Capacity, WaitingJob, decide, unreachable_quorum

NORTH_SOUTH = frozenset({"north", "south"})


def job(number: int, quorum: int = 1, invited: frozenset[str] | None = NORTH_SOUTH, resident: int = 0) -> WaitingJob:
    return WaitingJob(number, quorum, invited, resident)


def test_jobs_start_in_the_order_of_their_numbers_up_to_the_slots() -> None:
    decision = decide([job(3), job(1), job(2), job(4)], Capacity(3, 1, 0, NORTH_SOUTH, NORTH_SOUTH))
    assert decision.starts == [1, 2]
    assert decision.reasons == {
        3: "waits for a slot: 3 of 3 jobs run",
        4: "waits for a slot: 3 of 3 jobs run, and 1 goes first",
    }


def test_one_job_runs_and_one_site_refuses() -> None:
    decision = decide([job(2)], Capacity(1, 1, 0, NORTH_SOUTH, NORTH_SOUTH))
    assert decision.reasons == {2: "waits for a slot: 1 of 1 job runs"}
    reason = unreachable_quorum(job(2, invited=frozenset({"north"})), {"north": "no"}, set())
    assert reason == "its quorum of 1 cannot be reached, as 1 of 1 site refuses the job: north: no"


def test_a_job_without_its_quorum_holds_up_no_other() -> None:
    decision = decide([job(1, quorum=2), job(2)], Capacity(1, 0, 0, {"north", "east"}, {"north", "east"}))
    assert decision.starts == [2]
    assert decision.reasons == {
        1: "waits for clients: 1 of the 2 that a round needs are connected; not there: south has never joined"
    }


def test_clients_that_have_joined_before_are_named_without_a_comment() -> None:
    decision = decide([job(1, quorum=2)], Capacity(1, 0, 0, set(), {"north"}))
    assert decision.reasons[1].endswith(
        "0 of the 2 that a round needs are connected; not there: north, south has never joined"
    )


def test_of_many_missing_clients_some_are_named() -> None:
    invited = frozenset(f"site-{number:02d}" for number in range(20))
    (reason,) = decide([job(1, 3, invited)], Capacity(1, 0, 0)).reasons.values()
    assert "site-00" in reason and "site-19" not in reason and reason.endswith(" and 15 more")


def test_any_client_counts_for_a_job_that_invites_a_number() -> None:
    assert decide([job(1, 2, None)], Capacity(1, 0, 0, {"a", "b"})).starts == [1]
    decision = decide([job(1, 2, None)], Capacity(1, 0, 0, {"a"}))
    assert decision.reasons == {1: "waits for clients: 1 of the 2 that a round needs are connected"}


def test_memory_is_counted_over_the_jobs_that_start_together() -> None:
    decision = decide(
        [job(1, resident=60 << 20), job(2, resident=60 << 20), job(3, resident=40 << 20)],
        Capacity(5, 0, 100 << 20, NORTH_SOUTH),
    )
    assert decision.starts == [1, 3]
    assert decision.reasons == {
        2: "waits for memory: it takes 60MiB beside the budget, and 40MiB are free until a running job ends"
    }


@pytest.mark.parametrize(
    ("refused", "is_unreachable"),
    [({}, False), ({"north": "no"}, False), ({"north": "no", "south": "not signed"}, True)],
)
def test_a_quorum_is_unreachable_when_too_many_refuse(refused: dict[str, str], is_unreachable: bool) -> None:
    reason = unreachable_quorum(job(1), refused, set())
    assert bool(reason) is is_unreachable
    if reason:
        assert reason == (
            "its quorum of 1 cannot be reached, as 2 of 2 sites refuse the job: north: no; south: not signed"
        )


def test_of_a_job_for_any_client_the_known_ones_count() -> None:
    assert not unreachable_quorum(job(1, 1, None), {"a": "no"}, {"a", "b"})
    assert unreachable_quorum(job(1, 2, None), {"a": "no"}, {"a", "b"})
