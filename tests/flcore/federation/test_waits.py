"""Long polls: they end with a change, with their time, or with the server; and an idle one costs no CPU."""

import threading
import time
from concurrent.futures import wait

import pytest

from flcore.federation.waits import MAX_WAITS, Waits


def test_a_wait_ends_with_the_change_that_has_a_reply() -> None:
    waits, values = Waits[str](), list[str]()
    future = waits.wait(7, lambda is_over: values[0] if values else ("nothing" if is_over else None))
    waits.changed(7)
    assert not future.done()
    values.append("ready")
    waits.changed(8)
    assert not future.done(), "a change of another job"
    waits.changed(7)
    assert future.result(0) == "ready"
    waits.close()


def test_what_is_there_already_is_the_reply_at_once() -> None:
    waits = Waits[str]()
    assert waits.wait(7, lambda _: "there").result(0) == "there"
    waits.close()


def test_a_wait_ends_with_its_time() -> None:
    waits = Waits[str](max_wait_s=0.05)
    began = time.monotonic()
    futures = [waits.wait(number, lambda is_over: "over" if is_over else None) for number in range(10)]
    assert [future.result(5) for future in futures] == ["over"] * 10
    assert 0.04 < time.monotonic() - began < 2
    waits.close()


def test_an_error_is_the_callers() -> None:
    waits, is_gone = Waits[str](), threading.Event()

    def attempt(_: bool) -> str | None:
        if is_gone.is_set():
            raise LookupError("the job is deleted")
        return None

    future = waits.wait(7, attempt)
    is_gone.set()
    waits.changed(7)
    with pytest.raises(LookupError):
        future.result(0)
    waits.close()


def test_a_caller_that_has_gone_is_forgotten_and_the_end_of_the_server_ends_all() -> None:
    waits = Waits[str]()
    future = waits.wait(7, lambda is_over: "over" if is_over else None)
    other = waits.wait(7, lambda is_over: "over" if is_over else None)
    assert future.cancel()
    waits.changed(7)
    waits.close()
    assert other.result(0) == "over" and future.cancelled()
    assert waits.wait(7, lambda is_over: "over" if is_over else None).result(0) == "over"


def test_beyond_the_limit_calls_are_answered_at_once() -> None:
    waits = Waits[str]()
    waiting = [waits.wait(7, lambda is_over: "over" if is_over else None) for _ in range(MAX_WAITS)]
    assert waits.wait(7, lambda is_over: "over" if is_over else None).result(0) == "over"
    waits.close()
    assert not wait(waiting, 5).not_done


def test_changes_and_the_end_of_the_time_at_once_set_one_reply() -> None:
    for _ in range(20):
        waits = Waits[int](max_wait_s=0.01)
        futures = [waits.wait(7, lambda is_over: 1 if is_over else None) for _ in range(20)]
        threads = [threading.Thread(target=waits.changed, args=(7,)) for _ in range(4)]
        for thread in threads:
            thread.start()
        assert [future.result(5) for future in futures] == [1] * 20
        for thread in threads:
            thread.join()
        waits.close()


def test_waiting_costs_no_cpu() -> None:
    waits = Waits[str](max_wait_s=60)
    futures = [waits.wait(number, lambda is_over: "over" if is_over else None) for number in range(100)]
    began = time.process_time()
    time.sleep(0.3)
    assert time.process_time() - began < 0.05
    waits.close()
    assert not wait(futures, 5).not_done
