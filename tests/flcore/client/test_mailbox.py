"""Orders as a client's working thread gets them: first in, first out; withdrawn ones are not begun."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import cast

import pytest
from flcore_transport import Goodbye, Order, Refused, Welcome, Withdrawal

from flcore.client.mailbox import Mailbox

WELCOME = Welcome("secret")


def order(number: int) -> Order:
    return Order(number, b"do it")


def mailbox(*messages: Welcome | Order | Withdrawal | Goodbye) -> Mailbox:
    made = Mailbox()
    for message in (WELCOME, *messages):
        made.put(message)
    return made


def test_orders_are_first_in_first_out() -> None:
    box = mailbox(order(5), order(3), order(5), order(4))
    assert [box.take() for _ in range(3)] == [(WELCOME, order(number)) for number in (5, 3, 4)]


def test_an_order_that_was_withdrawn_before_it_was_begun_is_not_begun() -> None:
    box = mailbox(order(1), order(2), Withdrawal(1), Withdrawal(7))
    assert box.take() == (WELCOME, order(2))
    assert box.is_wanted


def test_the_answer_to_an_order_that_is_withdrawn_while_it_is_done_is_not_wanted() -> None:
    box = mailbox(order(1), order(2))
    box.take()
    box.put(Withdrawal(2))
    assert box.is_wanted
    box.put(Withdrawal(1))
    assert not box.is_wanted
    box.put(order(3))
    assert box.take() == (WELCOME, order(3))
    assert box.is_wanted


def test_a_welcome_of_the_same_session_begins_the_queue_anew_and_the_order_at_work_is_not_taken_twice() -> None:
    box = mailbox(order(1), order(2), order(3))
    box.take()
    box.put(WELCOME)
    for number in (1, 3):
        box.put(order(number))
    assert box.is_wanted
    assert box.take() == (WELCOME, order(3)), "the server has not sent the second again, so it is over"


def test_an_order_that_comes_again_after_it_was_done_is_taken_again() -> None:
    box = mailbox(order(1), order(2))
    assert box.take() == (WELCOME, order(1))
    assert box.take() == (WELCOME, order(2))
    box.put(order(1))
    assert box.take() == (WELCOME, order(1))


def test_another_session_withdraws_the_order_at_work_and_its_numbers_are_others() -> None:
    box, other = mailbox(order(1)), Welcome("another secret")
    box.take()
    box.put(other)
    assert not box.is_wanted
    box.put(order(1))
    assert box.take() == (other, order(1))


@pytest.mark.parametrize("end", [Goodbye("done"), Refused("over", "no")])
def test_the_end_comes_before_any_order(end: Goodbye | Refused) -> None:
    box = mailbox(order(1))
    box.put(end)
    assert box.is_over and not box.is_wanted
    box.put(Goodbye("later"))
    if isinstance(end, Goodbye):
        assert box.take() is end
    else:
        with pytest.raises(Refused, match="no"):
            box.take()


def test_who_waits_is_woken() -> None:
    box, taken = mailbox(), list[object]()
    worker = threading.Thread(target=lambda: taken.append(box.take()))
    worker.start()
    box.put(order(1))
    worker.join(20)
    assert taken == [(WELCOME, order(1))]


def test_a_new_server_that_comes_while_nothing_is_at_work_wants_its_answers() -> None:
    """The old server was killed, and its last order is done; the client waits for the next one."""
    mailbox = Mailbox()
    mailbox.put(Welcome("old server"))
    mailbox.put(Order(1, b"one"))
    mailbox.take()
    with ThreadPoolExecutor(1) as pool:
        taking = pool.submit(mailbox.take)
        while mailbox._at_work is not None:
            time.sleep(0.001)
        mailbox.put(Welcome("new server"))
        mailbox.put(Order(1, b"another one"))
        _, order = cast("tuple[Welcome, Order]", taking.result(20))
    assert order.content == b"another one" and mailbox.is_wanted
