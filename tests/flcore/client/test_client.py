"""A client without a server: what it sends again, what it does not send, and what it says."""

import threading
from collections.abc import Iterator
from pathlib import Path
from queue import SimpleQueue
from typing import Any, cast

import numpy as np
import pytest
from flcore_layout import Layout
from flcore_transport import (
    ConnectionLost,
    DownloadRequest,
    Failure,
    FromServer,
    Goodbye,
    Join,
    Outbox,
    Receipt,
    Refused,
    TaskAssignment,
    TransportError,
    UploadRequest,
    Welcome,
    Withdrawal,
)

from flcore import Arrays, Job, JobFailed, Model, Site, Task, Update
from flcore.client import outage
from flcore.client.client import Client
from flcore.client.executor import Executor
from flcore.job.messages import TaskContent, WelcomeContent, encode_tensors
from flcore.job.parsing import parse_contract
from flcore.model.wire_format import WireFormat
from tests.flcore.conftest import Function, Scripted

MODEL = Model.of({"w": np.zeros(1000, np.float32)})
WELCOME = Welcome("secret", WelcomeContent(tensors=encode_tensors(MODEL.spec), code_digest="", version="").to_bytes())


def assignment(number: int, round_: int, payload_id: str = "") -> TaskAssignment:
    message = TaskContent(task="train", round=round_, rounds=9, seed=1, hyperparameters={})
    return TaskAssignment(number, message.to_bytes(), MODEL.layout, payload_id or f"model-{round_}")


class Server:
    """A connection to a server that the test plays: it keeps what is sent, and says what `says` holds."""

    address = "stage:1"

    def __init__(self) -> None:
        self.says: SimpleQueue[FromServer | Exception] = SimpleQueue()
        self.changed = threading.Condition()
        self.uploads: list[tuple[int, bytes, list[bytes]]] = []
        self.reports: list[Failure] = []
        self.downloads = self.sessions = 0
        self.losing: list[Exception] = []

    def session(self, join: Join) -> Iterator[FromServer]:
        self.sessions += 1
        while True:
            message = self.says.get()
            if isinstance(message, Exception):
                raise message
            yield message
            if isinstance(message, Goodbye):
                return

    def download(self, request: DownloadRequest, layout: Layout | None = None) -> Iterator[bytes]:
        self.downloads += 1
        outbox = Outbox(MODEL)
        return iter([outbox.piece(index) for index in range(request.first_piece, len(outbox.piece_ranges))])

    def upload(self, request: UploadRequest, outbox: Outbox) -> Receipt:
        pieces = [outbox.piece(index) for index in range(len(outbox.piece_ranges))]
        with self.changed:
            self.uploads.append((request.assignment_id, request.content, pieces))
            self.changed.notify_all()
            if self.losing:
                raise self.losing.pop()
        return Receipt(request.assignment_id)

    def report(self, failure: Failure) -> Receipt:
        self.reports.append(failure)
        return Receipt(failure.assignment_id)

    def close(self) -> None:
        self.says.put(ConnectionLost("closed"))

    def wait_for_uploads(self, count: int) -> None:
        with self.changed:
            assert self.changed.wait_for(lambda: len(self.uploads) >= count, 20)


class Played:
    """A client in a thread, and the server that the test plays."""

    def __init__(self, directory: Path) -> None:
        self.server, self.told, self.trained = Server(), list[str](), list[int]()
        self.directory, self.wire = directory, dict[str, Any]()
        self.train: Function = self.uneven
        self.stopping = threading.Event()

    def uneven(self, model: Arrays, task: Task) -> Update:
        """A difference that int8 does not hold."""
        self.trained.append(task.round)
        return Update({"w": np.linspace(0, 1, 1000, dtype=np.float32)}, weight=1)

    def start(self, *messages: FromServer | Exception) -> None:
        content = {
            "name": "staged",
            "clients": 1,
            "server": {"model": "code.py:initial_model", "rounds": 9},
            "client": {"executor": "code.py"},
            "tasks": {"train": {"returns": "delta"}},
            "wire": self.wire,
        }
        job = Job(parse_contract(content, "the test's contract"), self.directory)
        executor = cast("Executor", Scripted(Site("client-1"), {"train": lambda *given: self.train(*given)}))
        self.client = Client(job, executor, self.server, self.told.append)
        self.client._stopping = self.stopping
        self.say(WELCOME, *messages)
        self.ended = self.client.start()

    def say(self, *messages: FromServer | Exception) -> None:
        for message in messages:
            self.server.says.put(message)

    def finish(self) -> None:
        self.say(Goodbye("done"))
        assert self.ended.result(20) == "done"


@pytest.fixture
def played(tmp_path: Path) -> Played:
    return Played(tmp_path)


def test_assignments_are_run_first_in_first_out(played: Played) -> None:
    played.start(assignment(1, 1), assignment(2, 2))
    played.server.wait_for_uploads(2)
    played.finish()
    assert [number for number, _, _ in played.server.uploads] == [1, 2]
    assert played.trained == [1, 2]


@pytest.mark.parametrize("upload", ["float32", "int8[64]"])
def test_a_repeated_assignment_is_answered_with_the_same_bytes_and_no_training(played: Played, upload: str) -> None:
    if upload != "float32":
        played.wire = {"upload": upload}
    played.start(assignment(1, 1))
    played.server.wait_for_uploads(1)
    played.say(assignment(1, 1))  # the same assignment: its receipt was lost on the server's side
    played.server.wait_for_uploads(2)
    played.say(assignment(2, 1))  # another assignment with the same content
    played.server.wait_for_uploads(3)
    played.say(assignment(3, 2))
    played.server.wait_for_uploads(4)
    played.finish()
    first, second, third, other = played.server.uploads
    assert first[1:] == second[1:] == third[1:]
    assert [number for number, _, _ in played.server.uploads] == [1, 1, 2, 3]
    assert played.trained == [1, 2]
    if upload != "float32":
        assert other[2] != first[2], "what rounding left out of the first went into the next"


def test_what_rounding_left_out_of_an_answer_that_never_arrived_is_not_kept(played: Played) -> None:
    played.wire = {"upload": "int8[64]"}
    played.server.losing = [Refused("untimely", "the round has closed without it")]
    played.start(assignment(1, 1))
    played.server.wait_for_uploads(1)
    played.say(assignment(2, 2))
    played.server.wait_for_uploads(2)
    played.finish()
    first, second = played.server.uploads
    assert first[2] == second[2]
    assert "client-1: the server refused: the round has closed without it" in played.told


def test_another_model_is_another_assignment(played: Played) -> None:
    played.start(assignment(1, 1))
    played.server.wait_for_uploads(1)
    played.say(assignment(2, 1, payload_id="another model"))
    played.server.wait_for_uploads(2)
    played.finish()
    assert played.trained == [1, 1]
    assert played.server.downloads == 2


def test_an_assignment_withdrawn_while_it_runs_is_finished_and_its_answer_not_sent(played: Played) -> None:
    begun, may_go_on = threading.Event(), threading.Event()

    def train(model: Arrays, task: Task) -> Update:
        if task.round == 1:
            begun.set()
            assert may_go_on.wait(20)
        return played.uneven(model, task)

    played.train = train
    played.start(assignment(1, 1), assignment(2, 2), assignment(3, 3))
    assert begun.wait(20)
    played.say(Withdrawal(1), Withdrawal(2), assignment(4, 1))
    while not played.server.says.empty():
        threading.Event().wait(0.01)
    may_go_on.set()
    played.server.wait_for_uploads(2)
    played.finish()
    assert [number for number, _, _ in played.server.uploads] == [3, 4]
    assert played.trained == [1, 3, 1], "the second is not begun"
    assert not played.server.reports
    assert "client-1: assignment 1 is over without this client's answer" in played.told


def test_an_upload_is_not_retried_for_a_withdrawn_assignment(played: Played) -> None:
    played.server.losing = [ConnectionLost("gone"), ConnectionLost("gone")]
    played.start(assignment(1, 1))
    played.server.wait_for_uploads(1)
    played.say(Withdrawal(1), assignment(2, 2))
    played.server.wait_for_uploads(3)
    played.finish()
    assert [number for number, _, _ in played.server.uploads if number == 2]
    assert [number for number, _, _ in played.server.uploads].count(1) <= 2


def test_a_job_that_failed_raises(played: Played) -> None:
    played.start(Goodbye("the job failed: no quorum", failed=True))
    with pytest.raises(JobFailed, match="the job failed: no quorum"):
        played.ended.result(20)


def test_a_server_that_cannot_be_reached_is_told_once_for_each_cause_and_tried_again(
    played: Played, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flcore.client.client.RETRY_S", 0.001)
    causes = [ConnectionLost("x cannot be reached: name")] * 3 + [TransportError("it answered with UNIMPLEMENTED")] * 2
    for cause in causes:
        played.say(cause)
    played.start()
    played.finish()
    assert played.server.sessions == 6
    assert played.told == [
        "client-1: x cannot be reached: name; trying again",
        "client-1: it answered with UNIMPLEMENTED; trying again",
        "client-1: joined stage:1",
    ]


def test_a_refusal_ends_a_client(played: Played) -> None:
    played.say(Refused("not-invited", "who are you?"))
    played.start()
    with pytest.raises(Refused, match="who are you"):
        played.ended.result(20)


def test_delays_grow_and_begin_anew_after_a_good_session(played: Played, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outage, "JITTER", 0.0)
    waits: list[float] = []

    class Stopping(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            waits.append(timeout or 0.0)
            return self.is_set()

    lost = ConnectionLost("gone")
    played.say(*[lost] * 6, WELCOME, lost, lost)
    played.stopping = Stopping()
    played.start()
    played.finish()
    assert waits[:8] == [0.2, 0.4, 0.8, 1.6, 3.2, 3.2, 0.2, 0.4]
    assert played.told.count("client-1: the connection is lost; joining again as soon as the server is there") == 1


def test_the_wire_format_of_a_compressed_upload_is_the_contracts(played: Played) -> None:
    played.wire = {"upload": "int8[64]"}
    played.start(assignment(1, 1))
    played.server.wait_for_uploads(1)
    played.finish()
    assert len(played.server.uploads[0][2]) == len(WireFormat.compressed(MODEL.spec, "int8[64]").pieces)
