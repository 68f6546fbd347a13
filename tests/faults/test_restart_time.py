"""A server with 100 clients that is killed amid their uploads takes them up again within five seconds."""

import re
import signal
import threading
import time
from pathlib import Path

import pytest
from flcore_transport import GrpcConnection, Outbox, Receipt, UploadRequest

from flcore import Job, Site, Task, Update
from flcore.client.client import Client
from flcore.client.executor import Executor
from flcore.client.notices import NoticeLogger
from flcore.model.model import Arrays
from flcore.process import raise_open_file_limit
from tests.faults.kill_points import POINTS
from tests.faults.real_federation import RealFederation

COUNT = 100
ELEMENTS = 1_200_000
"""Four pieces, with that of the other dtype."""

GOAL_S = 5.0


class Doubling(Executor):
    """A client without code of its own."""

    def __init__(self, name: str) -> None:
        self.site, self._notify = Site(name, ()), NoticeLogger()
        self._functions = {"train": self.train, "validate": self.validate}

    def train(self, model: Arrays, task: Task) -> Update:
        return Update({name: array + array for name, array in model.items()}, weight=1.0)

    def validate(self, model: Arrays, task: Task) -> Update:
        return Update(weight=1.0)


class Pieces:
    """Notes the first piece that each process of the server asks for, and whether its upload is resumed."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.is_watching = False
        self.first_at = self.first_resumed_at = 0.0

    def asked(self, index: int, *, is_first: bool) -> None:
        """The server asks for a piece, which is its call's first one."""
        with self._lock:
            if self.is_watching and is_first:
                self.first_at = self.first_at or time.monotonic()
                if index:
                    self.first_resumed_at = self.first_resumed_at or time.monotonic()


class WatchedOutbox(Outbox):
    """An outbox that tells which pieces the server asks for."""

    def __init__(self, outbox: Outbox, pieces: Pieces) -> None:
        vars(self).update(vars(outbox))
        self._pieces, self._is_first = pieces, True

    def piece(self, index: int) -> bytes:
        """Return a piece."""
        self._pieces.asked(index, is_first=self._is_first)
        self._is_first = False
        return super().piece(index)


class WatchedConnection(GrpcConnection):
    """A connection whose uploads are watched."""

    pieces: Pieces

    def upload(self, request: UploadRequest, outbox: Outbox) -> Receipt:
        """Send an answer."""
        return super().upload(request, WatchedOutbox(outbox, self.pieces))


@pytest.mark.stress
@pytest.mark.timeout(600)
def test_uploads_of_a_hundred_clients_are_resumed_within_five_seconds(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    raise_open_file_limit()
    names, pieces = [f"client-{number:03d}" for number in range(COUNT)], Pieces()
    append = [point.name for point in POINTS].index("after KeptStore.append, round 1")
    with RealFederation(tmp_path, names, 1, ELEMENTS, "deadline_s = 300") as federation:
        job, clients = Job.load(federation.job), []
        server = federation.start_server(point=(append, 1, 150))
        try:
            for name in names:
                connection = WatchedConnection(f"localhost:{federation.port}")
                connection.pieces = pieces
                clients.append(Client(job, Doubling(name), connection))
            ended = [client.start() for client in clients]
            assert server.wait(240) == -signal.SIGKILL
            pieces.is_watching, began = True, time.monotonic()
            server = federation.start_server()
            assert server.wait(240) == 0, federation.log("server")[-3000:]
            assert {each.result(60) for each in ended} == {"the job is done"}
        finally:
            for client in clients:
                client.stop()
        assert re.search(rf"round 1/1: {COUNT} of {COUNT} clients", federation.log("server"))
        first_s, resumed_s = pieces.first_at - began, pieces.first_resumed_at - began
        with capsys.disabled():
            print(
                f"\n{COUNT} clients: {first_s:.2f} s from the restart to the first piece, {resumed_s:.2f} s "
                "to that of a resumed upload"
            )
        assert 0 < resumed_s <= GOAL_S
