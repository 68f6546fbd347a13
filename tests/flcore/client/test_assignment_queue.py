"""Assignments as a client's working thread gets them: first in, first out; withdrawn ones are not started."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import cast

import pytest
from flcore_transport import Goodbye, Refused, TaskAssignment, Welcome, Withdrawal

from flcore.client.assignment_queue import AssignmentQueue

WELCOME = Welcome("secret")


def assignment(number: int) -> TaskAssignment:
    return TaskAssignment(number, b"do it")


def assignment_queue(*messages: Welcome | TaskAssignment | Withdrawal | Goodbye) -> AssignmentQueue:
    made = AssignmentQueue()
    for message in (WELCOME, *messages):
        made.put(message)
    return made


def test_assignments_are_first_in_first_out() -> None:
    queue = assignment_queue(assignment(5), assignment(3), assignment(5), assignment(4))
    assert [queue.next_assignment() for _ in range(3)] == [(WELCOME, assignment(number)) for number in (5, 3, 4)]


def test_an_assignment_withdrawn_before_it_starts_is_not_started() -> None:
    queue = assignment_queue(assignment(1), assignment(2), Withdrawal(1), Withdrawal(7))
    assert queue.next_assignment() == (WELCOME, assignment(2))
    assert queue.is_current_wanted


def test_the_answer_to_an_assignment_withdrawn_while_it_runs_is_not_wanted() -> None:
    queue = assignment_queue(assignment(1), assignment(2))
    queue.next_assignment()
    queue.put(Withdrawal(2))
    assert queue.is_current_wanted
    queue.put(Withdrawal(1))
    assert not queue.is_current_wanted
    queue.put(assignment(3))
    assert queue.next_assignment() == (WELCOME, assignment(3))
    assert queue.is_current_wanted


def test_a_welcome_of_the_same_session_clears_the_queue_and_the_current_assignment_is_not_taken_twice() -> None:
    queue = assignment_queue(assignment(1), assignment(2), assignment(3))
    queue.next_assignment()
    queue.put(WELCOME)
    for number in (1, 3):
        queue.put(assignment(number))
    assert queue.is_current_wanted
    assert queue.next_assignment() == (WELCOME, assignment(3)), (
        "the server has not sent the second again, so it is over"
    )


def test_an_assignment_repeated_after_it_was_done_is_taken_again() -> None:
    queue = assignment_queue(assignment(1), assignment(2))
    assert queue.next_assignment() == (WELCOME, assignment(1))
    assert queue.next_assignment() == (WELCOME, assignment(2))
    queue.put(assignment(1))
    assert queue.next_assignment() == (WELCOME, assignment(1))


def test_another_session_withdraws_the_current_assignment_and_its_ids_are_new() -> None:
    queue, other = assignment_queue(assignment(1)), Welcome("another secret")
    queue.next_assignment()
    queue.put(other)
    assert not queue.is_current_wanted
    queue.put(assignment(1))
    assert queue.next_assignment() == (other, assignment(1))


@pytest.mark.parametrize("end", [Goodbye("done"), Refused("over", "no")])
def test_the_end_comes_before_any_assignment(end: Goodbye | Refused) -> None:
    queue = assignment_queue(assignment(1))
    queue.put(end)
    assert queue.has_ended and not queue.is_current_wanted
    queue.put(Goodbye("later"))
    if isinstance(end, Goodbye):
        assert queue.next_assignment() is end
    else:
        with pytest.raises(Refused, match="no"):
            queue.next_assignment()


def test_a_message_wakes_the_waiting_thread() -> None:
    queue, taken = assignment_queue(), list[object]()
    worker = threading.Thread(target=lambda: taken.append(queue.next_assignment()))
    worker.start()
    queue.put(assignment(1))
    worker.join(20)
    assert taken == [(WELCOME, assignment(1))]


def test_a_new_server_that_comes_while_nothing_is_at_work_wants_its_answers() -> None:
    """The old server was killed, and its last assignment is done; the client waits for the next one."""
    assignment_queue = AssignmentQueue()
    assignment_queue.put(Welcome("old server"))
    assignment_queue.put(TaskAssignment(1, b"one"))
    assignment_queue.next_assignment()
    with ThreadPoolExecutor(1) as pool:
        taking = pool.submit(assignment_queue.next_assignment)
        while assignment_queue._current_id is not None:
            time.sleep(0.001)
        assignment_queue.put(Welcome("new server"))
        assignment_queue.put(TaskAssignment(1, b"another one"))
        _, assignment = cast("tuple[Welcome, TaskAssignment]", taking.result(20))
    assert assignment.content == b"another one" and assignment_queue.is_current_wanted
