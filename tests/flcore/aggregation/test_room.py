"""Room: claimed in turn, and never more in memory than there is."""

from flcore.aggregation.room import Room


def test_room_is_given_in_turn() -> None:
    room = Room(100)
    first, second, third = (room.claim(nbytes, may_wait=True) for nbytes in (60, 50, 10))
    assert first.result(0) is True
    assert not second.done() and not third.done(), "a small one does not overtake"
    assert room.claim(10, may_wait=False).result(0) is False
    room.release(60)
    assert second.result(0) is True and third.result(0) is True
    assert room.claim(101, may_wait=True).result(0) is False, "it will never fit"


def test_whoever_stops_waiting_makes_room_for_the_next() -> None:
    room = Room(100)
    room.claim(60, may_wait=True)
    second, third = (room.claim(nbytes, may_wait=True) for nbytes in (50, 40))
    assert second.cancel()
    room.release(0)
    assert third.result(0) is True
    room.release(100)
    assert room.claim(100, may_wait=False).result(0) is True


def test_without_a_bound_there_is_always_room() -> None:
    room = Room()
    assert all(room.claim(1 << 60, may_wait=False).result(0) for _ in range(5))
    room.enter(1 << 60)


def test_chunks_enter_in_turn_as_others_leave_and_nobody_waits_in_a_call() -> None:
    room = Room(100)
    assert room.claim(80, may_wait=False).result(0)
    assert room.enter(80).result(0)
    room.release(80)  # its chunks are let go from now on
    assert room.claim(80, may_wait=False).result(0), "so the next may come"
    assert room.enter(20).result(0)
    first, second, third = (room.enter(nbytes) for nbytes in (30, 5, 5))
    room.leave(20)
    assert not first.done() and not second.done(), "80 of 100 are held, and nobody overtakes"
    assert second.cancel()
    room.leave(10)
    assert first.result(0) and not third.done(), "100 of 100"
    room.leave(70)
    assert third.result(0)
    room.leave(35)
    assert room.enter(100).result(0), "the one that was cancelled holds nothing"


def test_when_room_was_given_back_is_known() -> None:
    now = [5.0]
    room = Room(100, clock=lambda: now[0])
    assert room.released_at < 0
    room.claim(10, may_wait=False)
    room.enter(10)
    now[0] = 6.0
    room.leave(10)
    assert room.released_at == 6.0
    now[0] = 7.0
    room.release(10)
    assert room.released_at == 7.0
