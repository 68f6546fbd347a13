"""The federation's state among threads: forced interleavings, and ten thousand clients."""

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
from flcore.job.messages import AnswerContent, JoinContent, TaskContent
from flcore.job.parsing import parse_contract
from flcore.model.spec import ModelSpec, TensorSpec
from flcore.model.wire_format import WireFormat
from flcore.server.events import Event, TaskAnswered, ignore_events
from flcore.server.federation import Federation
from flcore.server.federation_state import FederationState
from flcore.server.open_attempt import MAX_SLEEP_S, OpenAttempt
from flcore.server.task_attempt import AttemptPolicy, TaskAttempt
from flcore.server.timers import NEVER
from flcore.server.uploads import PendingUpload, UploadCall

SPEC = ModelSpec((TensorSpec("w", "float32", (4,)),))
CONTRACT = {
    "name": "survey",
    "server": {"model": "code.py:model", "rounds": 1},
    "client": {"executor": "code.py"},
    "tasks": {"survey": {"returns": "metrics"}},
}
ANSWER = AnswerContent(returns="metrics", weight=1.0, metrics={"loss": 1.0})


class Line:
    """A link that keeps what was said."""

    def __init__(self) -> None:
        self.said: list[FromServer] = []
        self.cuts: list[int] = []

    def send(self, message: FromServer) -> None:
        self.said.append(message)

    def cancel_transfers(self, assignment_id: int) -> None:
        self.cuts.append(assignment_id)


def opened(state: FederationState, clients: list[str], policy: AttemptPolicy) -> OpenAttempt:
    assignment_id = state.next_assignment_id()
    assignments = {client: TaskAssignment(assignment_id, b"", payload_id="") for client in clients}
    attempt = TaskAttempt(assignment_id, clients, policy, state._clock())
    open_attempt = OpenAttempt("train", "metrics", attempt, assignments, None, None)
    state.open(open_attempt)
    return open_attempt


def answered(state: FederationState, open_attempt: OpenAttempt, client: str, key: str = "key") -> None:
    upload = state.find_upload(open_attempt, client, key) or PendingUpload(
        key, ANSWER, WireFormat.uncompressed(SPEC), client, None
    )
    state.begin_upload(open_attempt, upload)
    UploadCall(state, open_attempt, upload).commit()


def test_two_attempts_may_be_open_at_once_and_each_client_owes_both() -> None:
    state = FederationState(ignore_events)
    first, second = (opened(state, ["a", "b"], AttemptPolicy(20.0)) for _ in range(2))
    line = Line()
    state.client_connected("a", line)
    assert line.said == [first.assignments["a"], second.assignments["a"]]
    for client in "ab":
        answered(state, second, client)
    state.wait_until_closed(second, Staging())
    assert not first.attempt.is_closed
    state.fail(first, "b", "no data")
    answered(state, first, "a")
    state.wait_until_closed(first, Staging())
    assert list(first.attempt.answers) == ["a"] and sorted(second.attempt.answers) == ["a", "b"]


def test_a_client_whose_attempt_closes_without_it_is_told_and_its_transfers_end() -> None:
    state, line = FederationState(ignore_events), Line()
    state.client_connected("b", line)
    open_attempt = opened(state, ["a", "b"], AttemptPolicy(20.0, close_at=1))
    answered(state, open_attempt, "a")
    state.wait_until_closed(open_attempt, Staging())
    assert line.said == [open_attempt.assignments["b"], Withdrawal(open_attempt.attempt.assignment_id)]
    assert line.cuts == [open_attempt.attempt.assignment_id]


def test_an_upload_that_another_one_of_its_client_replaced_is_told_so_and_its_client_has_not_failed() -> None:
    state = FederationState(ignore_events)
    open_attempt = opened(state, ["a"], AttemptPolicy(20.0))
    uploads = [PendingUpload(key, ANSWER, WireFormat.uncompressed(SPEC), "a", None) for key in ("first", "second")]
    calls = [UploadCall(state, open_attempt, state.begin_upload(open_attempt, upload)) for upload in uploads]
    for use in (lambda: calls[0].accept(b""), calls[0].commit):
        with pytest.raises(
            Refused, match=r"^client 'a': not taken: a newer upload of the same client has replaced it$"
        ):
            use()
    calls[1].commit()
    assert open_attempt.attempt.answers == {"a": uploads[1]} and not open_attempt.attempt.failed


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

    appended, directory = 0, ""

    def require_complete(self) -> None:
        """All is there."""

    def seal(self) -> None:
        """Nothing is on the disk."""

    def release_files(self) -> None:
        """Nothing is on the disk."""

    def discard(self) -> None:
        """Let nothing go."""


@pytest.mark.parametrize("error", [None, StagingError("the disk is full", client="a")], ids=["success", "failure"])
def test_a_second_call_of_an_answer_waits_for_the_commit_of_the_first_and_no_longer(error: Exception | None) -> None:
    """Also the attempt waits for it, beyond its deadline; and other clients' events are not held up meanwhile."""
    state, holding = FederationState(ignore_events), Holding(error)
    open_attempt = opened(state, ["a", "b", "c"], AttemptPolicy(0.2))
    open_attempt.aggregator = cast("Aggregator", holding)
    upload = PendingUpload("key", ANSWER, WireFormat.uncompressed(SPEC), "a", cast("StagedUpdate", Staged()))
    state.begin_upload(open_attempt, upload)
    with ThreadPoolExecutor(4) as pool:
        first = pool.submit(state.commit, open_attempt, upload)
        assert holding.is_committing.wait(20)
        second = pool.submit(state.commit, open_attempt, upload)
        closed = pool.submit(state.wait_until_closed, open_attempt, Staging())
        state.fail(open_attempt, "b", "no data")
        while "c" not in open_attempt.attempt.failed:
            time.sleep(0.01)
        assert not closed.done() and not first.done() and not second.done()
        holding.may_go_on.set()
        closed.result(20)
        refused = [each.exception(20) for each in (first, second)]
    assert holding.commits == 1
    if error is None:
        assert refused == [None, None] and list(open_attempt.attempt.answers) == ["a"]
    else:
        assert all(isinstance(each, Refused) for each in refused) and sorted(open_attempt.attempt.failed) == [
            "a",
            "b",
            "c",
        ]


def test_no_client_receives_a_withdrawal_before_its_assignment() -> None:
    """A link that is slow to take the assignment, while another thread closes the attempt."""
    state, line, assignment_comes = FederationState(ignore_events), Line(), threading.Event()

    class Slow(Line):
        def send(self, message: FromServer) -> None:
            if isinstance(message, TaskAssignment):
                assignment_comes.set()
                time.sleep(0.2)
            line.send(message)

    state.client_connected("a", Slow())
    with ThreadPoolExecutor(2) as pool:
        opening = pool.submit(opened, state, ["a", "b"], AttemptPolicy(20.0, close_at=1))
        assert assignment_comes.wait(20)
        (open_attempt,) = state._attempts.values()
        answered(state, open_attempt, "b")
        opening.result(20)
    state.wait_until_closed(open_attempt, Staging())
    assert line.said == [open_attempt.assignments["a"], Withdrawal(open_attempt.attempt.assignment_id)]


def test_a_suspended_server_gives_every_client_its_time_again() -> None:
    now = [0.0]
    state = FederationState(ignore_events, clock=lambda: now[0])
    open_attempt = opened(state, ["a"], AttemptPolicy(1000.0, grace_s=5.0))
    waits = iter([MAX_SLEEP_S, MAX_SLEEP_S + 60.0, MAX_SLEEP_S])

    def wait(timeout: float | None = None) -> bool:
        now[0] += next(waits)
        return False

    state._changed.wait = wait  # type: ignore[method-assign]
    with pytest.raises(StopIteration):
        state.wait_until_closed(open_attempt, Staging())
    assert "abandoned" in open_attempt.attempt.failed["a"], (
        "and not disconnected for too long: 63 s are 3 s to its client"
    )


@pytest.mark.parametrize("is_waiting", [False, True])
def test_a_server_that_is_suspended_while_no_thread_sleeps_fails_no_client(is_waiting: bool) -> None:
    """As between the sending of the assignments and the first sleep, or while a timer runs."""
    now = [0.0]
    state = FederationState(ignore_events, clock=lambda: now[0])
    open_attempt = opened(state, ["a"], AttemptPolicy(5.0))
    if is_waiting:
        open_attempt.wakes_at = NEVER
        state._changed.wait = lambda timeout=None: False  # type: ignore[method-assign]
        state._sleep_until_due(open_attempt)
    now[0] = 7.0
    state.client_connected("a", Line())
    state.piece_sent(open_attempt, "a", 1, is_last=False)
    with state._handle_event(open_attempt) as time_now:
        open_attempt.attempt.tick(time_now, 0.0)
    assert not open_attempt.attempt.failed
    now[0] = 7.0 + 5.0 - MAX_SLEEP_S - 0.1  # the suspension may have begun within the last second of work
    open_attempt.wakes_at = NEVER  # no suspension from here on
    with state._handle_event(open_attempt) as time_now:
        open_attempt.attempt.tick(time_now, 0.0)
    assert not open_attempt.attempt.failed
    now[0] += 0.1 + MAX_SLEEP_S
    open_attempt.wakes_at = NEVER
    with state._handle_event(open_attempt) as time_now:
        open_attempt.attempt.tick(time_now, 0.0)
    assert "within the deadline of 5 s" in open_attempt.attempt.failed["a"]


@pytest.fixture
def hasty_switches() -> Iterator[None]:
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval)


def act_at_random(state: FederationState, open_attempt: OpenAttempt, client: str, chance: random.Random) -> None:
    match chance.randrange(6):
        case 0 | 1:
            answered(state, open_attempt, client, key=str(chance.randrange(2)))
        case 2:
            state.piece_sent(open_attempt, client, 1, is_last=chance.random() < 0.5)
        case 3:
            state.fail(open_attempt, client, "fault")
        case 4:
            state.client_connected(client, Line())
        case _:
            state.client_disconnected(client)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.usefixtures("hasty_switches")
def test_threads_that_switch_at_any_moment_lose_and_double_nothing(seed: int) -> None:
    """Six threads answer, fail, read, come and go, in attempts that close under them."""
    seen: list[Event] = []
    state, stop = FederationState(seen.append), threading.Event()
    clients = [f"c{number}" for number in range(30)]
    current = [opened(state, clients, AttemptPolicy(20.0))]

    def act(number: int) -> None:
        chance = random.Random(seed * 100 + number)
        while not stop.is_set():
            client = chance.choice(clients)
            with suppress(Refused):
                act_at_random(state, state.require_attempt(client, current[-1].attempt.assignment_id), client, chance)

    with ThreadPoolExecutor(6) as pool:
        acting = [pool.submit(act, number) for number in range(6)]
        for _ in range(25):
            state.wait_until_closed(current[-1], Staging())
            attempt = current[-1].attempt
            assert not set(attempt.answers) & set(attempt.failed)
            assert set(attempt.answers) | set(attempt.failed) == set(clients)
            current.append(opened(state, clients, AttemptPolicy(20.0)))
        stop.set()
        for each in acting:
            each.result(20)
    told = [event for event in seen if isinstance(event, TaskAnswered)]
    assert len(told) == sum(len(each.attempt.answers) for each in current)


def events_per_second(count: int) -> float:
    """Run one attempt at `count` clients over the in-process transport: joins, assignments, answers, ends."""
    names = [f"c{number:05}" for number in range(count)]
    job = Job(parse_contract(CONTRACT | {"clients": count}, "here"), Path())
    federation = Federation(job, SPEC)
    server, sessions = InProcessServer(federation), []
    join = JoinContent(contract=job.contract.to_json(), code_digest="", version="").to_bytes()
    began = time.process_time()
    for name in names:
        connection = InProcessConnection(server)
        stream = connection.session(Join(name, "1", join))
        welcome = cast("Welcome", next(stream))
        sessions.append((connection, stream, welcome.session_secret))
    content = TaskContent(task="survey", round=1, rounds=1, seed=0, hyperparameters={})
    model = Model.of({"w": np.zeros(4, np.float32)})
    open_attempt = federation.open_attempt(dict.fromkeys(names, content), model, AttemptPolicy(1000.0))
    waiter = threading.Thread(target=lambda: federation.state.wait_until_closed(open_attempt, Staging()))
    waiter.start()
    for connection, stream, secret in sessions:
        assignment = cast("TaskAssignment", next(stream))
        request = UploadRequest(secret, assignment.assignment_id, ANSWER.to_bytes(), token=assignment.token)
        connection.upload(request, Outbox(EmptyPayload()))
        cast("Generator[object]", stream).close()
    waiter.join(100)
    assert len(open_attempt.attempt.answers) == count
    return (time.process_time() - began) / count


@pytest.mark.serial
def test_an_event_costs_the_same_among_ten_thousand_clients() -> None:
    few, many = min(events_per_second(500) for _ in range(3)), events_per_second(10_000)
    assert many < 4 * few + 1e-3, f"{few * 1e6:.0f} and {many * 1e6:.0f} microseconds for each client"
