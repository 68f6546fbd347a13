"""The memory quota: reserved first in, first out, and never exceeded."""

from flcore.aggregation.memory_quota import MemoryQuota


def test_memory_is_granted_first_in_first_out() -> None:
    quota = MemoryQuota(100)
    first, second, third = (quota.reserve(nbytes, may_wait=True) for nbytes in (60, 50, 10))
    assert first.result(0) is True
    assert not second.done() and not third.done(), "a small one does not overtake"
    assert quota.reserve(10, may_wait=False).result(0) is False
    quota.release_reservation(60)
    assert second.result(0) is True and third.result(0) is True
    assert quota.reserve(101, may_wait=True).result(0) is False, "it will never fit"


def test_a_cancelled_request_lets_the_next_one_pass() -> None:
    quota = MemoryQuota(100)
    quota.reserve(60, may_wait=True)
    second, third = (quota.reserve(nbytes, may_wait=True) for nbytes in (50, 40))
    assert second.cancel()
    quota.release_reservation(0)
    assert third.result(0) is True
    quota.release_reservation(100)
    assert quota.reserve(100, may_wait=False).result(0) is True


def test_without_a_bound_every_request_is_granted() -> None:
    quota = MemoryQuota()
    assert all(quota.reserve(1 << 60, may_wait=False).result(0) for _ in range(5))
    quota.acquire_chunk(1 << 60)


def test_chunks_enter_in_turn_as_others_leave_and_nobody_waits_in_a_call() -> None:
    quota = MemoryQuota(100)
    assert quota.reserve(80, may_wait=False).result(0)
    assert quota.acquire_chunk(80).result(0)
    quota.release_reservation(80)  # its chunks are freed from now on
    assert quota.reserve(80, may_wait=False).result(0), "so the next may come"
    assert quota.acquire_chunk(20).result(0)
    first, second, third = (quota.acquire_chunk(nbytes) for nbytes in (30, 5, 5))
    quota.release_chunks(20)
    assert not first.done() and not second.done(), "80 of 100 are held, and nobody overtakes"
    assert second.cancel()
    quota.release_chunks(10)
    assert first.result(0) and not third.done(), "100 of 100"
    quota.release_chunks(70)
    assert third.result(0)
    quota.release_chunks(35)
    assert quota.acquire_chunk(100).result(0), "the one that was cancelled holds nothing"


def test_the_time_of_the_last_release_is_known() -> None:
    now = [5.0]
    quota = MemoryQuota(100, clock=lambda: now[0])
    assert quota.released_at < 0
    quota.reserve(10, may_wait=False)
    quota.acquire_chunk(10)
    now[0] = 6.0
    quota.release_chunks(10)
    assert quota.released_at == 6.0
    now[0] = 7.0
    quota.release_reservation(10)
    assert quota.released_at == 7.0
