"""A client in a thread, at a server that the test plays."""

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from queue import SimpleQueue
from typing import Any, cast

import numpy as np
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
)

from flcore import Arrays, Job, Model, Site, Task, Update
from flcore.client.client import Client
from flcore.client.executor import Executor
from flcore.client.state_directory import StateDirectory
from flcore.job.messages import TaskContent, WelcomeContent, encode_tensors
from flcore.job.parsing import parse_contract
from tests.flcore.conftest import Function, Scripted

MODEL = Model.of({"w": np.zeros(1000, np.float32)})


def welcome(secret: str, model: Model = MODEL) -> Welcome:
    return Welcome(secret, WelcomeContent(tensors=encode_tensors(model.spec), code_digest="", version="").to_bytes())


WELCOME = welcome("secret")


def assignment(
    number: int, round_: int, payload_id: str = "", task: str = "train", layout: Layout = MODEL.layout
) -> TaskAssignment:
    message = TaskContent(task=task, round=round_, rounds=9, seed=1, hyperparameters={})
    return TaskAssignment(number, message.to_bytes(), layout, payload_id or f"model-{round_}", b"token %d" % number)


class Server:
    """A connection to a server that the test plays: it keeps what is sent, and says what `says` holds.

    `losing` ends as many uploads with these errors, and `cuts` as many downloads after these numbers of pieces.
    `serves` says of a download whether it gets a piece at all. The last byte of the first piece is wrong in each of the
    first `corrupt_downloads`. `uploading` is called before an upload takes a piece. It is refused after `takes` pieces.
    """

    address = "stage:1"

    def __init__(self, model: Model) -> None:
        self.model = model
        self.uploading: Callable[[], None] = lambda: None
        self.serves: Callable[[DownloadRequest], bool] = lambda _: True
        self.first_pieces: list[int] = []
        self.cuts: list[int] = []
        self.says: SimpleQueue[FromServer | Exception] = SimpleQueue()
        self.changed = threading.Condition()
        self.uploads: list[tuple[int, bytes, list[bytes]]] = []
        self.reports: list[Failure] = []
        self.tokens: list[tuple[str, bytes]] = []
        self.sessions = self.ended_transfers = self.corrupt_downloads = 0
        self.losing: list[Exception] = []
        self.takes: int | None = None

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
        self.first_pieces.append(request.first_piece)
        self.tokens.append(("download", request.token))
        outbox = Outbox(self.model)
        count = self.cuts.pop(0) if self.cuts else None
        if not self.serves(request):
            raise ConnectionLost("cut")
        for index in range(request.first_piece, len(outbox.piece_ranges)):
            if count == index - request.first_piece:
                raise ConnectionLost("cut")
            piece = outbox.piece(index)
            if index == request.first_piece and self.downloads <= self.corrupt_downloads:
                piece = piece[:-1] + bytes([piece[-1] ^ 0x5A])
            yield piece

    @property
    def downloads(self) -> int:
        return len(self.first_pieces)

    def upload(self, request: UploadRequest, outbox: Outbox) -> Receipt:
        self.uploading()
        pieces = [outbox.piece(index) for index in range(len(outbox.piece_ranges))[: self.takes]]
        with self.changed:
            self.tokens.append(("upload", request.token))
            self.uploads.append((request.assignment_id, request.content, pieces))
            self.changed.notify_all()
            if self.losing:
                raise self.losing.pop()
            if self.takes is not None:
                raise Refused("over", "the task is over")
        return Receipt(request.assignment_id)

    def report(self, failure: Failure) -> Receipt:
        with self.changed:
            self.reports.append(failure)
            self.tokens.append(("report", failure.token))
            self.changed.notify_all()
        return Receipt(failure.assignment_id)

    def running_transfers(self) -> list[Callable[[], object]]:
        def end() -> None:
            with self.changed:
                self.ended_transfers += 1
                self.changed.notify_all()

        return [end]

    def close(self) -> None:
        self.says.put(ConnectionLost("closed"))

    def wait_for_report(self) -> None:
        with self.changed:
            assert self.changed.wait_for(lambda: self.reports, 20)

    def wait_for_uploads(self, count: int) -> None:
        with self.changed:
            assert self.changed.wait_for(lambda: len(self.uploads) >= count, 20)


class Played:
    """A client in a thread, and the server that the test plays."""

    def __init__(self, directory: Path, model: Model = MODEL, state: Path | None = None) -> None:
        self.server, self.told, self.trained = Server(model), list[str](), list[int]()
        self.model, self.state, self._owned = model, state, ExitStack()
        self.directory, self.wire = directory, dict[str, Any]()
        self.train: Function = self.uneven
        self.validate: Function = lambda *_: Update(weight=1, metrics={"loss": 1})
        self.stopping = threading.Event()

    def uneven(self, model: Arrays, task: Task) -> Update:
        """A difference that int8 does not hold."""
        self.trained.append(task.round)
        arrays = {
            tensor.name: np.linspace(0, 1, int(np.prod(tensor.shape))).astype(tensor.dtype)
            for tensor in self.model.spec.tensors
        }
        return Update(arrays, weight=1)

    def start(self, *messages: FromServer | Exception) -> None:
        """Start the client: a new one after `leave`."""
        content = {
            "name": "staged",
            "clients": 1,
            "server": {"model": "code.py:initial_model", "rounds": 9},
            "client": {"executor": "code.py"},
            "tasks": {"train": {"returns": "delta"}, "validate": {"returns": "metrics"}},
            "wire": self.wire,
        }
        job = Job(parse_contract(content, "the test's contract"), self.directory)
        functions: dict[str, Function] = {
            "train": lambda *given: self.train(*given),
            "validate": lambda *given: self.validate(*given),
        }
        executor = cast("Executor", Scripted(Site("client-1"), functions))
        kept = None
        if self.state is not None:
            kept = self._owned.enter_context(StateDirectory(self.state, client="client-1", contract=job.contract))
        self.client = Client(job, executor, self.server, self._tell, state=kept)
        self.client._stopping = self.stopping
        self.say(welcome("secret", self.model), *messages)
        self.ended = self.client.start()

    def _tell(self, text: str) -> None:
        with self.server.changed:
            self.told.append(text)
            self.server.changed.notify_all()

    def wait_for_receipts(self, count: int) -> None:
        """Wait until the client has said of so many answers that they are in."""
        with self.server.changed:
            assert self.server.changed.wait_for(lambda: sum("is in" in text for text in self.told) >= count, 20)

    def say(self, *messages: FromServer | Exception) -> None:
        for message in messages:
            self.server.says.put(message)

    def finish(self) -> None:
        self.say(Goodbye("done"))
        assert self.ended.result(20) == "done"
        self._owned.close()

    def leave(self) -> None:
        """End the client without a goodbye, as if its process had ended. Another `start` is a new client."""
        self.client.stop()
        assert isinstance(self.ended.exception(20), TransportError)
        self._owned.close()
        self.server.says, self.stopping = SimpleQueue(), threading.Event()
