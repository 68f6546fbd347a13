"""An upload that a client's own end cut: the next process of the client goes on where the server is."""

import threading
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
from flcore_transport import ConnectionLost, Outbox, Receipt, TransportError, UploadRequest

from flcore import Arrays, Site, Task, Update
from flcore.client.client import Client
from flcore.client.state_directory import StateDirectory
from flcore.server.events import ClientLeft
from tests.flcore.conftest import Scripted, Stage, adding, mean_of

PIECES = 6
WINDOW = 4
"""The most pieces that are under way."""

BIG = f"""
import numpy as np

def initial_model(seed):
    return {{"w": np.zeros({PIECES << 19}, np.float32)}}
"""


class Cut(Outbox):
    """An outbox that ends its client when it is asked for a piece, and notes the pieces that it gave."""

    def __init__(self, outbox: Outbox, at: int, end: Any, given: list[int]) -> None:
        self.piece_ranges = outbox.piece_ranges
        self._outbox, self._at, self._end, self._given = outbox, at, end, given

    def piece(self, index: int) -> bytes:
        if index == self._at:
            self._end()
            raise ConnectionLost("the client has ended")
        self._given.append(index)
        return self._outbox.piece(index)


def start(stage: Stage, state: StateDirectory, train: Any, cut: int, given: list[int]) -> "tuple[Client, Future[str]]":
    """Start a client that ends when it is to send piece `cut`; -1: never."""
    connection: Any = stage.connect()
    upload = connection.upload

    def cut_upload(request: UploadRequest, outbox: Outbox) -> Receipt:
        receipt: Receipt = upload(request, Cut(outbox, cut, client.stop, given))
        return receipt

    connection.upload = cut_upload
    executor = Scripted(Site("client-1", ("client-1",)), {"train": train})
    client = Client(stage.job, executor, connection, state=state)
    stage._clients.append(client)
    return client, stage.pool.submit(client.run)


@pytest.mark.parametrize("cut", [0, 1, 3, 5])
def test_a_restarted_client_resumes_its_upload(stage: Stage, tmp_path: Path, cut: int) -> None:
    (stage.directory / "big.py").write_text(BIG)
    stage.open(clients=1, quorum=1, model="big.py:initial_model")
    trained = list[int]()

    def train(model: Arrays, task: Task) -> Update:
        trained.append(task.round)
        return adding(1.0)(model, task)

    first, second = list[int](), list[int]()
    with StateDirectory(tmp_path / "state", client="client-1", contract=stage.job.contract) as state:
        _, ended = start(stage, state, train, cut, first)
        assert isinstance(ended.exception(30), TransportError)
    for _ in range(2000):  # until then, the name is taken
        if any(isinstance(event, ClientLeft) for event in stage.events):
            break
        threading.Event().wait(0.01)
    with StateDirectory(tmp_path / "state", client="client-1", contract=stage.job.contract) as state:
        _, ended = start(stage, state, train, -1, second)
        outcome = stage.result()
        assert ended.result(20) == "the job is done"
    assert mean_of(outcome) == {1.0}
    assert trained == [1], "the answer is read from disk"
    assert first == list(range(cut))
    assert second == list(range(second[0], PIECES))
    assert cut - WINDOW <= second[0] <= cut, "at most a window of pieces is sent again"
    if stage.transport == "in-process":
        assert second[0] == cut
