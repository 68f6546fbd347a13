"""Receipts that are lost on their way: each costs the client a status query, and never a training or a second count."""

import random
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from flcore_layout import Layout
from flcore_transport import ConnectionLost, DownloadRequest, Failure, FromServer, Join, Outbox, Receipt, UploadRequest

from flcore import Arrays, Site, Task, Update
from flcore.client.client import Client
from flcore.server.events import TaskAnswered
from tests.flcore.conftest import Scripted, Stage, adding, mean_of

CLIENTS = 5


class LosingReceipts:
    """A connection that loses one or two receipts of each answer: the client gets `ConnectionLost` in their place.

    `lost` counts them, `receipts` those that came by assignment, `sent` the pieces.
    """

    def __init__(self, connection: Any, draw: random.Random, rounds: int) -> None:
        self.address = connection.address
        self._connection, self._draw, self._rounds = connection, draw, rounds
        self.lost, self.sent, self.receipts = 0, 0, Counter[int]()
        self._losses: dict[int, int] = {}

    def session(self, join: Join) -> Iterator[FromServer]:
        yield from self._connection.session(join)

    def download(self, request: DownloadRequest, layout: Layout | None = None) -> Iterator[bytes]:
        yield from self._connection.download(request, layout)

    def upload(self, request: UploadRequest, outbox: Outbox) -> Receipt:
        receipt: Receipt = self._connection.upload(request, Counting(outbox, self))
        losses = self._losses.setdefault(request.assignment_id, self._draw.choice([1, 1, 2]))
        # The last round is the job's end: a goodbye replaces the receipt.
        if losses and request.assignment_id < self._rounds:
            self._losses[request.assignment_id] -= 1
            self.lost += 1
            raise ConnectionLost("the receipt was lost")
        self.receipts[receipt.assignment_id] += 1
        return receipt

    def report(self, failure: Failure) -> Receipt:
        raise AssertionError(f"no client fails: {failure}")

    def running_transfers(self) -> list[Callable[[], object]]:
        running: list[Callable[[], object]] = self._connection.running_transfers()
        return running

    def close(self) -> None:
        self._connection.close()


class Counting(Outbox):
    """An outbox that counts its pieces."""

    def __init__(self, outbox: Outbox, connection: LosingReceipts) -> None:
        self.piece_ranges = outbox.piece_ranges
        self._outbox, self._connection = outbox, connection

    def piece(self, index: int) -> bytes:
        self._connection.sent += 1
        return self._outbox.piece(index)


def lose_receipts(stage: Stage, monkeypatch: pytest.MonkeyPatch, rounds: int, seed: int) -> int:
    """Run a job in which each answer's first receipt is lost; return how many were."""
    monkeypatch.setattr("flcore.client.client.RETRY_S", 0.001)
    names = [f"client-{number}" for number in range(1, CLIENTS + 1)]
    trained, lock = Counter[tuple[str, int]](), threading.Lock()
    bounds = {"max_weight": 1000, "max_abs": 1000, "max_metrics": 3}
    stage.open(wait_for=CLIENTS, clients=CLIENTS, rounds=rounds, quorum=CLIENTS, bounds=bounds)
    connections, said = list[LosingReceipts](), list[str]()

    def train(model: Arrays, task: Task) -> Update:
        with lock:
            trained[task.site.name, task.round] += 1
        return adding(1.0)(model, task)

    ends = []
    for number, name in enumerate(names):
        connections.append(LosingReceipts(stage.connect(), random.Random(seed + number), rounds))
        executor = Scripted(Site(name, tuple(names)), {"train": train})
        client = Client(stage.job, executor, connections[-1], said.append)
        stage._clients.append(client)
        ends.append(stage.pool.submit(client.run))
    outcome = stage.result()
    assert [end.result(20) for end in ends] == ["the job is done"] * CLIENTS
    assert mean_of(outcome) == {float(rounds)}, "an update was lost or counted twice"
    assert set(trained.values()) == {1} and len(trained) == rounds * CLIENTS, "a lost receipt cost a training"
    for connection in connections:
        assert connection.receipts == Counter(dict.fromkeys(range(1, rounds + 1), 1))
        assert connection.sent == rounds * _pieces(outcome), "a lost receipt costs no piece"
    answered = [event for event in stage.events if isinstance(event, TaskAnswered)]
    assert len(answered) == rounds * CLIENTS, "the audit log has each receipt once"
    assert not [text for text in said if "refused" in text]
    return sum(connection.lost for connection in connections)


def _pieces(outcome: Any) -> int:
    return len(Outbox(outcome.model).piece_ranges)


def test_each_of_fifty_lost_receipts_ends_in_a_receipt(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    assert lose_receipts(stage, monkeypatch, rounds=11, seed=20) >= 50


@pytest.mark.stress
def test_each_of_a_thousand_lost_receipts_ends_in_a_receipt(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    lost = lose_receipts(stage, monkeypatch, rounds=201, seed=21)
    print(f"{lost:,} lost receipts over {stage.transport}, seeds 21 to {20 + CLIENTS}: {lost:,} receipts, 0 trainings")
    assert lost >= 1000
