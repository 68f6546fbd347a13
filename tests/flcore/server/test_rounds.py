"""The owner of the server's state among threads: forced interleavings, and ten thousand clients."""

import random
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import pytest
from flcore_transport import FromServer, Order, Refused, Withdrawal

from flcore.aggregation.staging import Staging
from flcore.job.messages import UpdateMessage
from flcore.model.form import Form
from flcore.model.spec import ModelSpec, TensorSpec
from flcore.server.events import Answered, Event, unobserved
from flcore.server.open_round import OpenRound
from flcore.server.rounds import HEARTBEAT_S, Rounds
from flcore.server.task_round import RoundRules, TaskRound
from flcore.server.uploads import Upload, UploadStream

SPEC = ModelSpec((TensorSpec("w", "float32", (4,)),))
MESSAGE = UpdateMessage(returns="metrics", weight=1.0, metrics={"loss": 1.0})


class Line:
    """A link that keeps what was said."""

    def __init__(self) -> None:
        self.said: list[FromServer] = []
        self.cuts: list[int] = []

    def send(self, message: FromServer) -> None:
        self.said.append(message)

    def cut(self, order: int) -> None:
        self.cuts.append(order)


def opened(rounds: Rounds, clients: list[str], rules: RoundRules) -> OpenRound:
    number = rounds.next_number()
    orders = {client: Order(number, b"", payload_id="") for client in clients}
    state = TaskRound(number, clients, rules, rounds.now())
    open_round = OpenRound("train", "metrics", state, orders, None, None)
    rounds.open(open_round)
    return open_round


def answered(rounds: Rounds, open_round: OpenRound, client: str, key: str = "key") -> None:
    upload = rounds.upload_of(open_round, client, key) or Upload(key, MESSAGE, Form.plain(SPEC), client, None)
    rounds.begin(open_round, upload)
    UploadStream(rounds, open_round, upload).commit()


def test_two_rounds_may_be_open_at_once_and_each_client_owes_both() -> None:
    rounds = Rounds(unobserved)
    first, second = (opened(rounds, ["a", "b"], RoundRules(20.0)) for _ in range(2))
    line = Line()
    rounds.arrive("a", line)
    assert line.said == [first.orders["a"], second.orders["a"]]
    for client in "ab":
        answered(rounds, second, client)
    rounds.close(second, Staging())
    assert not first.state.is_closed
    rounds.fail(first, "b", "no data")
    answered(rounds, first, "a")
    rounds.close(first, Staging())
    assert list(first.state.answers) == ["a"] and sorted(second.state.answers) == ["a", "b"]


def test_a_client_whose_round_ends_without_it_is_told_and_its_transfers_are_cut() -> None:
    rounds, line = Rounds(unobserved), Line()
    rounds.arrive("b", line)
    open_round = opened(rounds, ["a", "b"], RoundRules(20.0, close_at=1))
    answered(rounds, open_round, "a")
    rounds.close(open_round, Staging())
    assert line.said == [open_round.orders["b"], Withdrawal(open_round.state.number)]
    assert line.cuts == [open_round.state.number]


def test_a_server_that_stood_still_gives_everybody_their_time_again() -> None:
    now = [0.0]
    rounds = Rounds(unobserved, clock=lambda: now[0])
    open_round = opened(rounds, ["a"], RoundRules(1000.0, grace_s=5.0))
    waits = iter([HEARTBEAT_S, HEARTBEAT_S + 60.0, HEARTBEAT_S])

    def wait(timeout: float | None = None) -> bool:
        now[0] += next(waits)
        return False

    rounds._changed.wait = wait  # type: ignore[method-assign]
    with pytest.raises(StopIteration):
        rounds.close(open_round, Staging())
    assert "abandoned" in open_round.state.failed["a"], "and not lost: 63 s are 3 s to its client"


@pytest.fixture
def hasty_switches() -> Iterator[None]:
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval)


def act_at_random(rounds: Rounds, open_round: OpenRound, client: str, chance: random.Random) -> None:
    match chance.randrange(6):
        case 0 | 1:
            answered(rounds, open_round, client, key=str(chance.randrange(2)))
        case 2:
            rounds.piece_sent(open_round, client, 1, is_last=chance.random() < 0.5)
        case 3:
            rounds.fail(open_round, client, "fault")
        case 4:
            rounds.arrive(client, Line())
        case _:
            rounds.depart(client)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.usefixtures("hasty_switches")
def test_threads_that_switch_at_any_moment_lose_and_double_nothing(seed: int) -> None:
    """Six threads answer, fail, read, come and go, in rounds that close under them."""
    seen: list[Event] = []
    rounds, stop = Rounds(seen.append), threading.Event()
    clients = [f"c{number}" for number in range(30)]
    current = [opened(rounds, clients, RoundRules(20.0))]

    def act(number: int) -> None:
        chance = random.Random(seed * 100 + number)
        while not stop.is_set():
            client = chance.choice(clients)
            with suppress(Refused):
                act_at_random(rounds, rounds.find(client, current[-1].state.number), client, chance)

    with ThreadPoolExecutor(6) as pool:
        acting = [pool.submit(act, number) for number in range(6)]
        for _ in range(25):
            rounds.close(current[-1], Staging())
            state = current[-1].state
            assert not set(state.answers) & set(state.failed)
            assert set(state.answers) | set(state.failed) == set(clients)
            current.append(opened(rounds, clients, RoundRules(20.0)))
        stop.set()
        for each in acting:
            each.result(20)
    told = [event for event in seen if isinstance(event, Answered)]
    assert len(told) == sum(len(each.state.answers) for each in current)


def seconds_per_client(count: int) -> float:
    clients = [f"c{number}" for number in range(count)]
    rounds = Rounds(unobserved)
    began = time.process_time()
    for client in clients:
        rounds.arrive(client, Line())
    open_round = opened(rounds, clients, RoundRules(1000.0))
    waiter = threading.Thread(target=lambda: rounds.close(open_round, Staging()))
    waiter.start()
    for client in clients:
        rounds.depart(client)
        rounds.arrive(client, Line())
        rounds.piece_sent(open_round, client, 1, is_last=False)
        rounds.piece_sent(open_round, client, 1, is_last=True)
        answered(rounds, open_round, client)
    waiter.join(60)
    assert len(open_round.state.answers) == count
    return (time.process_time() - began) / count


def test_an_event_costs_the_same_among_ten_thousand_clients() -> None:
    few, many = min(seconds_per_client(500) for _ in range(3)), seconds_per_client(10_000)
    assert many < 4 * few + 1e-4, f"{few * 1e6:.0f} and {many * 1e6:.0f} microseconds for each client"


def test_waiting_for_ten_thousand_clients_looks_at_each_once() -> None:
    rounds, found = Rounds(unobserved), list[Any]()
    waiter = threading.Thread(target=lambda: found.extend(rounds.wait_for(10_000, 60.0)))
    waiter.start()
    began = time.process_time()
    for number in range(10_000):
        rounds.arrive(f"c{number:05}", Line())
    waiter.join(60)
    assert len(found) == 10_000 and time.process_time() - began < 5.0
