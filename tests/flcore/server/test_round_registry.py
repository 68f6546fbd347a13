"""The owner of the server's state among threads: forced interleavings, and ten thousand clients."""

import random
import sys
import threading
import time
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import cast

import numpy as np
import pytest
from flcore_transport import (
    FromServer,
    InProcessConnection,
    InProcessServer,
    Join,
    Outbox,
    Refused,
    TaskAssignment,
    UploadRequest,
    Welcome,
    Withdrawal,
)

from flcore import Job, Model, StagingError
from flcore.aggregation.aggregator import Aggregator
from flcore.aggregation.staged_update import StagedUpdate
from flcore.aggregation.staging import Staging
from flcore.client.cached_answer import EmptyPayload
from flcore.job.messages import JoinMessage, TaskMessage, UpdateMessage
from flcore.job.parsing import parse_contract
from flcore.model.spec import ModelSpec, TensorSpec
from flcore.model.wire_format import WireFormat
from flcore.server.events import Event, TaskAnswered, ignore_events
from flcore.server.federation import Federation
from flcore.server.open_round import OpenRound
from flcore.server.round_registry import MAX_SLEEP_S, RoundRegistry
from flcore.server.task_round import RoundPolicy, TaskRound
from flcore.server.uploads import PendingUpload, UploadCall

SPEC = ModelSpec((TensorSpec("w", "float32", (4,)),))
CONTRACT = {
    "name": "survey",
    "server": {"model": "code.py:model", "rounds": 1},
    "client": {"executor": "code.py"},
    "tasks": {"survey": {"returns": "metrics"}},
}
MESSAGE = UpdateMessage(returns="metrics", weight=1.0, metrics={"loss": 1.0})


class Line:
    """A link that keeps what was said."""

    def __init__(self) -> None:
        self.said: list[FromServer] = []
        self.cuts: list[int] = []

    def send(self, message: FromServer) -> None:
        self.said.append(message)

    def cancel_transfers(self, assignment_id: int) -> None:
        self.cuts.append(assignment_id)


def opened(rounds: RoundRegistry, clients: list[str], rules: RoundPolicy) -> OpenRound:
    number = rounds.next_number()
    assignments = {client: TaskAssignment(number, b"", payload_id="") for client in clients}
    state = TaskRound(number, clients, rules, rounds._clock())
    open_round = OpenRound("train", "metrics", state, assignments, None, None)
    rounds.open(open_round)
    return open_round


def answered(rounds: RoundRegistry, open_round: OpenRound, client: str, key: str = "key") -> None:
    upload = rounds.find_upload(open_round, client, key) or PendingUpload(
        key, MESSAGE, WireFormat.uncompressed(SPEC), client, None
    )
    rounds.begin_upload(open_round, upload)
    UploadCall(rounds, open_round, upload).commit()


def test_two_rounds_may_be_open_at_once_and_each_client_owes_both() -> None:
    rounds = RoundRegistry(ignore_events)
    first, second = (opened(rounds, ["a", "b"], RoundPolicy(20.0)) for _ in range(2))
    line = Line()
    rounds.client_connected("a", line)
    assert line.said == [first.assignments["a"], second.assignments["a"]]
    for client in "ab":
        answered(rounds, second, client)
    rounds.wait_until_closed(second, Staging())
    assert not first.state.is_closed
    rounds.fail(first, "b", "no data")
    answered(rounds, first, "a")
    rounds.wait_until_closed(first, Staging())
    assert list(first.state.answers) == ["a"] and sorted(second.state.answers) == ["a", "b"]


def test_a_client_whose_round_ends_without_it_is_told_and_its_transfers_are_cut() -> None:
    rounds, line = RoundRegistry(ignore_events), Line()
    rounds.client_connected("b", line)
    open_round = opened(rounds, ["a", "b"], RoundPolicy(20.0, close_at=1))
    answered(rounds, open_round, "a")
    rounds.wait_until_closed(open_round, Staging())
    assert line.said == [open_round.assignments["b"], Withdrawal(open_round.state.number)]
    assert line.cuts == [open_round.state.number]


class Holding:
    """An aggregator whose commits wait: a hook at the border of the lock."""

    def __init__(self, error: Exception | None) -> None:
        self.is_committing, self.may_go_on = threading.Event(), threading.Event()
        self.commits, self._error = 0, error

    def commit(self, staged: object) -> None:
        self.commits += 1
        self.is_committing.set()
        assert self.may_go_on.wait(20)
        if self._error is not None:
            raise self._error


class Staged:
    """A staged update of which nothing is looked at."""

    def discard(self) -> None:
        """Let nothing go."""


@pytest.mark.parametrize("error", [None, StagingError("the disk is full", client="a")], ids=["success", "failure"])
def test_a_second_stream_of_an_answer_waits_for_the_commit_of_the_first_and_no_longer(error: Exception | None) -> None:
    """Also the round waits for it, beyond its deadline; and other clients' events are not held up meanwhile."""
    rounds, holding = RoundRegistry(ignore_events), Holding(error)
    open_round = opened(rounds, ["a", "b", "c"], RoundPolicy(0.2))
    open_round.aggregator = cast("Aggregator", holding)
    upload = PendingUpload("key", MESSAGE, WireFormat.uncompressed(SPEC), "a", cast("StagedUpdate", Staged()))
    rounds.begin_upload(open_round, upload)
    with ThreadPoolExecutor(4) as pool:
        first = pool.submit(rounds.commit, open_round, upload)
        assert holding.is_committing.wait(20)
        second = pool.submit(rounds.commit, open_round, upload)
        closed = pool.submit(rounds.wait_until_closed, open_round, Staging())
        rounds.fail(open_round, "b", "no data")
        while "c" not in open_round.state.failed:
            time.sleep(0.01)
        assert not closed.done() and not first.done() and not second.done()
        holding.may_go_on.set()
        closed.result(20)
        refused = [each.exception(20) for each in (first, second)]
    assert holding.commits == 1
    if error is None:
        assert refused == [None, None] and list(open_round.state.answers) == ["a"]
    else:
        assert all(isinstance(each, Refused) for each in refused) and sorted(open_round.state.failed) == ["a", "b", "c"]


def test_no_client_receives_a_withdrawal_before_its_assignment() -> None:
    """A link that is slow to take the assignment, while another thread closes the round."""
    rounds, line, order_comes = RoundRegistry(ignore_events), Line(), threading.Event()

    class Slow(Line):
        def send(self, message: FromServer) -> None:
            if isinstance(message, TaskAssignment):
                order_comes.set()
                time.sleep(0.2)
            line.send(message)

    rounds.client_connected("a", Slow())
    with ThreadPoolExecutor(2) as pool:
        opening = pool.submit(opened, rounds, ["a", "b"], RoundPolicy(20.0, close_at=1))
        assert order_comes.wait(20)
        (open_round,) = rounds._rounds.values()
        answered(rounds, open_round, "b")
        opening.result(20)
    rounds.wait_until_closed(open_round, Staging())
    assert line.said == [open_round.assignments["a"], Withdrawal(open_round.state.number)]


def test_a_server_that_stood_still_gives_everybody_their_time_again() -> None:
    now = [0.0]
    rounds = RoundRegistry(ignore_events, clock=lambda: now[0])
    open_round = opened(rounds, ["a"], RoundPolicy(1000.0, grace_s=5.0))
    waits = iter([MAX_SLEEP_S, MAX_SLEEP_S + 60.0, MAX_SLEEP_S])

    def wait(timeout: float | None = None) -> bool:
        now[0] += next(waits)
        return False

    rounds._changed.wait = wait  # type: ignore[method-assign]
    with pytest.raises(StopIteration):
        rounds.wait_until_closed(open_round, Staging())
    assert "abandoned" in open_round.state.failed["a"], "and not lost: 63 s are 3 s to its client"


@pytest.fixture
def hasty_switches() -> Iterator[None]:
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval)


def act_at_random(rounds: RoundRegistry, open_round: OpenRound, client: str, chance: random.Random) -> None:
    match chance.randrange(6):
        case 0 | 1:
            answered(rounds, open_round, client, key=str(chance.randrange(2)))
        case 2:
            rounds.piece_sent(open_round, client, 1, is_last=chance.random() < 0.5)
        case 3:
            rounds.fail(open_round, client, "fault")
        case 4:
            rounds.client_connected(client, Line())
        case _:
            rounds.client_disconnected(client)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.usefixtures("hasty_switches")
def test_threads_that_switch_at_any_moment_lose_and_double_nothing(seed: int) -> None:
    """Six threads answer, fail, read, come and go, in rounds that close under them."""
    seen: list[Event] = []
    rounds, stop = RoundRegistry(seen.append), threading.Event()
    clients = [f"c{number}" for number in range(30)]
    current = [opened(rounds, clients, RoundPolicy(20.0))]

    def act(number: int) -> None:
        chance = random.Random(seed * 100 + number)
        while not stop.is_set():
            client = chance.choice(clients)
            with suppress(Refused):
                act_at_random(rounds, rounds.require_round(client, current[-1].state.number), client, chance)

    with ThreadPoolExecutor(6) as pool:
        acting = [pool.submit(act, number) for number in range(6)]
        for _ in range(25):
            rounds.wait_until_closed(current[-1], Staging())
            state = current[-1].state
            assert not set(state.answers) & set(state.failed)
            assert set(state.answers) | set(state.failed) == set(clients)
            current.append(opened(rounds, clients, RoundPolicy(20.0)))
        stop.set()
        for each in acting:
            each.result(20)
    told = [event for event in seen if isinstance(event, TaskAnswered)]
    assert len(told) == sum(len(each.state.answers) for each in current)


def events_per_second(count: int) -> float:
    """Run one round of a federation of `count` clients over the in-process transport: joins, orders, answers, ends."""
    names = [f"c{number:05}" for number in range(count)]
    job = Job(parse_contract(CONTRACT | {"clients": count}, "here"), Path())
    federation = Federation(job, SPEC)
    server, sessions = InProcessServer(federation), []
    join = JoinMessage(contract=job.contract.to_json(), code_digest="", version="").to_bytes()
    began = time.process_time()
    for name in names:
        connection = InProcessConnection(server)
        stream = connection.session(Join(name, "1", join))
        welcome = cast("Welcome", next(stream))
        sessions.append((connection, stream, welcome.session_secret))
    message = TaskMessage(task="survey", round=1, rounds=1, seed=0, hyperparameters={})
    model = Model.of({"w": np.zeros(4, np.float32)})
    open_round = federation.start_round(dict.fromkeys(names, message), model, RoundPolicy(1000.0))
    waiter = threading.Thread(target=lambda: federation.rounds.wait_until_closed(open_round, Staging()))
    waiter.start()
    for connection, stream, secret in sessions:
        assignment = cast("TaskAssignment", next(stream))
        connection.upload(UploadRequest(secret, assignment.assignment_id, MESSAGE.to_bytes()), Outbox(EmptyPayload()))
        cast("Generator[object]", stream).close()
    waiter.join(100)
    assert len(open_round.state.answers) == count
    return (time.process_time() - began) / count


@pytest.mark.serial
def test_an_event_costs_the_same_among_ten_thousand_clients() -> None:
    few, many = min(events_per_second(500) for _ in range(3)), events_per_second(10_000)
    assert many < 4 * few + 1e-3, f"{few * 1e6:.0f} and {many * 1e6:.0f} microseconds for each client"
