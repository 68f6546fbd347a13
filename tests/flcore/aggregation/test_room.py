"""Room: claimed in turn, and never more in memory than there is."""

import threading

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


def test_those_who_come_wait_until_those_who_go_have_left() -> None:
    room = Room(100)
    assert room.claim(80, may_wait=False).result(0)
    room.enter(80)
    room.release(80)  # its chunks are let go from now on
    assert room.claim(80, may_wait=False).result(0), "so the next may come"
    room.enter(20)
    entered = threading.Event()

    def enter() -> None:
        room.enter(30)
        entered.set()

    thread = threading.Thread(target=enter)
    thread.start()
    room.leave(20)
    assert not entered.wait(0.05), "90 of 100 are held"
    room.leave(10)
    assert entered.wait(5)
    thread.join()


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
