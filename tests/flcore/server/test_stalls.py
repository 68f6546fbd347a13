"""Those who stall, and those who are late: memory is given back, and nobody else waits; over gRPC and in-process."""

import threading
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from flcore_transport import (
    ConnectionLost,
    DownloadRequest,
    Outbox,
    Refused,
    TaskAssignment,
    UploadRequest,
    Welcome,
    Withdrawal,
    flow_control,
)

from flcore import Arrays, Model, QuorumError, Task, Update
from flcore.aggregation.budget import Budget
from flcore.aggregation.memory_quota import MemoryQuota
from flcore.aggregation.staged_update import StagedUpdate
from flcore.aggregation.staging import Staging
from flcore.job.messages import AnswerContent
from flcore.server import task_runner
from tests.flcore.conftest import Stage, adding, mean_of

CODE = """
import numpy as np

def initial_model(seed):
    return {"w": np.zeros(1_500_000, np.float32)}

def larger_model(seed):
    return {"w": np.zeros(10_000_000, np.float32)}
"""
"""Three pieces, and twenty, which is more than gRPC sends ahead."""


STALL_S = 1.5
"""Long enough for the lively client on a busy machine."""


class Stalling(Outbox):
    """Sends one piece, and the rest when it is told to."""

    def __init__(self, model: Model) -> None:
        super().__init__(model)
        self.may_go_on, self.is_stalled = threading.Event(), threading.Event()

    def piece(self, index: int) -> bytes:
        if index:
            self.is_stalled.set()
            assert self.may_go_on.wait(20)
        return super().piece(index)


@pytest.fixture
def large(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> Stage:
    """A stage whose model has three pieces."""
    monkeypatch.setattr(task_runner, "SPILL_AFTER_S", 0.1)
    (stage.directory / "large.py").write_text(CODE)
    return stage


def next_assignment(stream: Iterator[object]) -> TaskAssignment:
    for message in stream:
        if isinstance(message, TaskAssignment):
            return message
        assert isinstance(message, Welcome | Withdrawal)
    raise AssertionError("no assignment came")


def upload(
    stage: Stage, secret: str, assignment: TaskAssignment, value: float, *, stalling: bool
) -> "tuple[Stalling, Future[object]]":
    """Send an update by hand, on a thread of its own."""
    model = Model.of({"w": np.full(1_500_000, value, np.float32)})
    outbox = Stalling(model)
    if not stalling:
        outbox.may_go_on.set()
    message = AnswerContent(returns="weights", weight=1.0, spec_fingerprint=model.spec.fingerprint)
    request = UploadRequest(secret, assignment.assignment_id, message.to_bytes(), model.layout, assignment.token)
    return outbox, stage.pool.submit(lambda: stage.connect().upload(request, outbox))


@pytest.fixture
def spilled(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Set when an update has gone to disk."""
    done, spill = threading.Event(), StagedUpdate.spill

    def spilling(staged: StagedUpdate) -> None:
        spill(staged)
        done.set()

    monkeypatch.setattr(StagedUpdate, "spill", spilling)
    return done


@pytest.mark.parametrize("plan", ["batch", "streaming"])
def test_a_stalled_update_goes_to_disk_and_still_counts(large: Stage, spilled: threading.Event, plan: str) -> None:
    large.open(wait_for=2, clients=2, model="large.py:initial_model", plan=plan)
    secret, stream = large.join("client-1")
    large.client("client-2", adding(1.0))
    outbox, receipt = upload(large, secret, next_assignment(stream), 4.0, stalling=True)
    assert spilled.wait(20)
    assert not receipt.done()
    outbox.may_go_on.set()
    receipt.result(20)
    assert mean_of(large.result()) == {2.5}


def test_an_upload_without_bytes_for_the_stall_timeout_has_failed(large: Stage) -> None:
    large.open(wait_for=2, clients=2, model="large.py:initial_model", stall_timeout_s=STALL_S)
    secret, stream = large.join("client-1")
    large.client("client-2", adding(1.0))
    outbox, receipt = upload(large, secret, next_assignment(stream), 4.0, stalling=True)
    outcome = large.result()
    assert mean_of(outcome) == {1.0}
    assert outcome.history[0].failed["train"]["client-1"] == f"no bytes for {STALL_S} s (server.stall_timeout_s)"
    outbox.may_go_on.set()
    assert receipt.exception(20) is not None


class Breaking(Outbox):
    """Sends one piece, and breaks off before the next, whenever it is asked for."""

    def piece(self, index: int) -> bytes:
        if index:
            raise BrokenPipeError
        return super().piece(index)


def test_coming_back_without_bytes_is_no_progress(large: Stage) -> None:
    large.open(wait_for=2, clients=2, model="large.py:initial_model", stall_timeout_s=STALL_S)
    secret, stream = large.join("client-1")
    has_failed = threading.Event()

    def train(model: Arrays, task: Task) -> Update:
        assert has_failed.wait(60)  # until then the server is there to say no
        return adding(1.0)(model, task)

    large.client("client-2", train)
    assignment, model = next_assignment(stream), Model.of({"w": np.full(1_500_000, 4.0, np.float32)})
    message = AnswerContent(returns="weights", weight=1.0, spec_fingerprint=model.spec.fingerprint)
    request = UploadRequest(secret, assignment.assignment_id, message.to_bytes(), model.layout, assignment.token)

    def insist() -> None:
        while True:
            with suppress(BrokenPipeError):
                large.connect().upload(request, Breaking(model))

    with pytest.raises(Refused, match=r"not taken|has ended the transfers of this assignment"):
        insist()
    has_failed.set()
    outcome = large.result()
    assert outcome.history[0].failed["train"]["client-1"] == f"no bytes for {STALL_S} s (server.stall_timeout_s)"


def test_a_download_that_stands_still_has_failed_and_one_that_is_done_has_all_the_time(large: Stage) -> None:
    large.open(wait_for=2, clients=2, model="large.py:larger_model", stall_timeout_s=STALL_S)
    secret, stream = large.join("client-1")
    training = threading.Event()

    def train(model: Arrays, task: Task) -> Update:
        assert training.wait(20)
        return adding(1.0)(model, task)

    large.client("client-2", train)
    assignment = next_assignment(stream)
    pieces = large.connect().download(DownloadRequest(secret, assignment.assignment_id, token=assignment.token))
    next(pieces)
    threading.Timer(2 * STALL_S, training.set).start()
    outcome = large.result()
    assert mean_of(outcome) == {1.0}
    assert f"no bytes for {STALL_S} s" in outcome.history[0].failed["train"]["client-1"]


def test_a_round_that_closes_ends_its_stragglers_reading(large: Stage) -> None:
    large.open(wait_for=2, clients=2, rounds=2, close_at=1, model="large.py:larger_model")
    secret, stream = large.join("client-1")
    turns = [threading.Event(), threading.Event()]

    def train(model: Arrays, task: Task) -> Update:
        assert turns[task.round - 1].wait(20)
        return adding(1.0)(model, task)

    large.client("client-2", train)
    first = next_assignment(stream)
    reading = large.connect().download(DownloadRequest(secret, first.assignment_id, token=first.token))
    next(reading)
    turns[0].set()
    second = next_assignment(stream)
    with pytest.raises((Refused, ConnectionLost)):
        list(reading)
    with pytest.raises(Refused, match=r"closed without it|it answers an earlier attempt"):
        list(large.connect().download(DownloadRequest(secret, first.assignment_id, token=first.token)))
    found = list(large.connect().download(DownloadRequest(secret, second.assignment_id, token=second.token)))
    assert len(found) == 20, "the next round's model may be read"
    turns[1].set()
    assert mean_of(large.result()) == {2.0}


def test_an_update_that_neither_memory_nor_disk_takes_costs_its_client_its_place(
    large: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: Staging) -> Path:
        raise OSError(28, "No space left on device")

    def small(model: Arrays, task: Task) -> Update:
        monkeypatch.setattr(Staging, "next_directory", full)
        return adding(1.0)(model, task)

    monkeypatch.setattr(MemoryQuota, "reserve", lambda *_, **__: done(False))
    large.open(wait_for=1, clients=1, quorum=1, model="large.py:initial_model")
    large.client("client-1", small)
    with pytest.raises(QuorumError, match=r"client 'client-1': the disk does not keep it: .*No space left on device"):
        large.result()


def done(result: bool) -> "Future[bool]":
    future: Future[bool] = Future()
    future.set_result(result)
    return future


def test_a_hundred_stalled_updates_stop_nobody(large: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flow_control, "YIELD_AFTER_S", 0.1)  # they hold all windows, and two give way at a time
    names = [f"stalled-{number}" for number in range(100)]
    large.open(
        clients=[*names, "lively"],
        wait_for=101,
        close_at=1,
        model="large.py:initial_model",
        budget=Budget.parse("64MiB"),
    )
    joined = [large.join(name) for name in names]
    may_answer = threading.Event()

    def last(model: Arrays, task: Task) -> Update:
        assert may_answer.wait(60)
        return adding(1.0)(model, task)

    large.client("lively", last)
    stalled = [upload(large, secret, next_assignment(stream), 4.0, stalling=True) for secret, stream in joined]
    assert stalled[0][0].is_stalled.wait(20)
    may_answer.set()
    assert mean_of(large.result()) == {1.0}
    for outbox, _ in stalled:
        outbox.may_go_on.set()
