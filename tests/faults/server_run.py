"""A recorded run of the whole server with `durability = "disk"`, and its continuation after a power loss.

Server and clients are in one process. A client logs a mark when its receipt has come. `check_image` compares an image
with the marks and with the bytes that the clients have sent; `check_continuation` also has the server go on with the
run, and compares its models, bit for bit, with those of the run that was not disturbed.
"""

import gc
import json
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import numpy.typing as npt
from flcore_transport import InProcessConnection, InProcessServer, Receipt, UploadRequest
from flcore_transport.pieces import Outbox

from flcore import Arrays, Job, Outcome, Site, Task, Update, load, open_update
from flcore.client import cached_answer
from flcore.client.client import Client
from flcore.client.executor import Executor
from flcore.client.notices import NoticeLogger
from flcore.errors import RunExists
from flcore.job.parsing import parse_contract
from flcore.server import results
from flcore.server.events import Event, RoundFinished, ignore_events
from flcore.server.history import RoundRecord
from flcore.server.run_directory import PUBLISHED_DIRECTORY, UPDATES_DIRECTORY
from flcore.server.run_state import STATE_FILE, RunState
from flcore.server.serve import serve
from tests.faults.disk_model import require_complete
from tests.faults.disk_recorder import DiskRecorder
from tests.faults.killed import recorder_after_kill
from tests.faults.operations import Mark, Operation
from tests.faults.sqlite_recorder import recording_sqlite

CHECKPOINT_PAGES = 12
CALLS = ("sample", "train", "validate", "publish")
"""The calls of the controller in each round of `fed_avg`, from which their numbers follow."""

RUN = Path("new/run")
CLIENTS = ("north", "south")
ELEMENTS = 1500

CODE = f"""
import numpy as np

def initial_model(seed):
    return {{"w": np.zeros({ELEMENTS}, np.float32), "b": np.zeros((7, 3), np.float16)}}
"""

Sent = dict[tuple[int, str], dict[str, npt.NDArray[Any]]]


def call_number(round_: int, kind: str) -> int:
    """Return the number of a call in the run."""
    return len(CALLS) * (round_ - 1) + CALLS.index(kind) + 1


@dataclass
class ServerRun:
    """A recorded run.

    Attributes:
        job: The job.
        plan: The plan, "batch" or "streaming".
        log: The log, with the marks `receipt` (task, round, client) and `finished` (round).
        sent: The update that each client has sent in each round.
        models: The published model of each round, from the first.
    """

    job: Job
    plan: str
    log: list[Operation] = field(default_factory=list)
    sent: Sent = field(default_factory=dict)
    models: list[dict[str, bytes]] = field(default_factory=list)

    def observe(self, recorder: DiskRecorder, event: Event) -> None:
        """Log a mark when a round is over, and keep its model."""
        if isinstance(event, RoundFinished):
            if len(self.models) < event.record.round:
                self.models.append(_bits(recorder.root / RUN / "model.safetensors"))
            recorder.mark("finished", round=event.record.round)


class _Trainer(Executor):
    """Adds numbers to the model that differ by client, round and element."""

    def __init__(self, name: str, run: ServerRun) -> None:
        self.site, self._notify = Site(name, run.job.contract.client_names), NoticeLogger()
        self._run, self.task = run, ("", 0)
        self._functions = {"train": self._train, "validate": self._validate}

    def _train(self, model: Arrays, task: Task) -> Update:
        self.task = "train", task.round
        name = self.site.name
        draw = np.random.default_rng([task.round, *name.encode()])
        arrays = {key: array + draw.integers(1, 5, array.shape).astype(array.dtype) for key, array in model.items()}
        self._run.sent.setdefault((task.round, name), arrays)
        return Update(arrays, weight=1 + CLIENTS.index(name), metrics={"loss": 0.5})

    def _validate(self, _: Arrays, task: Task) -> Update:
        self.task = "validate", task.round
        return Update(weight=1, metrics={"accuracy": task.round % 2 + 0.25})


class _MarkingConnection(InProcessConnection):
    """Logs a mark when a receipt has come."""

    def __init__(self, server: InProcessServer, trainer: _Trainer, recorder: DiskRecorder | None) -> None:
        super().__init__(server)
        self._trainer, self._recorder = trainer, recorder

    def upload(self, request: UploadRequest, outbox: Outbox) -> Receipt:
        receipt = super().upload(request, outbox)
        if self._recorder is not None:
            task, round_ = self._trainer.task
            self._recorder.mark("receipt", task=task, round=round_, client=self._trainer.site.name)
        return receipt


def record_server(root: Path, job_directory: Path, rounds: int, plan: str = "batch") -> ServerRun:
    """Run a job to its end below an empty directory."""
    run = ServerRun(_job(job_directory, rounds), plan)
    run.log = _record(run, DiskRecorder(root)).log
    return run


def record_restart(run: ServerRun, root: Path, killed_at: int) -> list[Operation]:
    """Restart the server on what it has left if it was killed at a position of its log; return the longer log."""
    return _record(run, recorder_after_kill(root, run.log[:killed_at])).log


def _record(run: ServerRun, recorder: DiskRecorder) -> DiskRecorder:
    with recorder.recording(), recording_sqlite(recorder, CHECKPOINT_PAGES), _clients_that_stay():
        with mock.patch.object(results, "MODEL_HEADER_BYTES", 4096):  # disk space is reserved by writing zeros here
            _serve(run, recorder.root / RUN, recorder)
        gc.collect()
        require_complete(recorder)
    return recorder


def check_image(run: ServerRun, image: Path, marks: Sequence[Mark]) -> None:
    """Raise an error unless each receipt has its data, and the published model is whole and recent."""
    directory = image / RUN
    receipts = [mark.facts for mark in marks if mark.name == "receipt"]
    finished = max((mark.facts["round"] for mark in marks if mark.name == "finished"), default=0)
    if finished or (directory / "model.safetensors").exists():
        version = 1 + run.models.index(_bits(directory / "model.safetensors"))
        assert finished <= version <= finished + 1, f"{finished} rounds are over, and the model is that of {version}"
    if not (directory / STATE_FILE).exists():
        assert not receipts, "the record is gone, and there were receipts"
        return
    with RunState(directory / STATE_FILE) as state:
        done = {call.number for call in state.calls()}
        is_over = "ended" in state.facts()
        answers = {
            (kind, round_): {each.client: each for each in state.answers(call_number(round_, kind))}
            for round_ in range(1, len(run.models) + 1)
            for kind in ("train", "validate")
        }
        over = {record.round for record in state.rounds()}
        assert len(over) >= finished, "the record of a round that is over is gone"
    for receipt in receipts:
        task, round_, client = receipt["task"], receipt["round"], receipt["client"]
        # Answers are not needed any more once a validation is over, and once the round of the updates is over.
        if round_ in over or (task == "validate" and call_number(round_, task) in done):
            continue
        assert client in answers[task, round_], f"the receipt of {client} for {task} in round {round_} is gone"
    for (task, round_), answered in answers.items():
        if task == "train" and round_ not in over:
            for answer in answered.values():
                _check_update(directory / UPDATES_DIRECTORY / answer.directory, run.sent[round_, answer.client])
    published = [round_ for round_ in range(1, len(run.models) + 1) if call_number(round_, "publish") in done]
    # A restarted server needs the model of the last round that is over, and gives the last published one its name.
    needed = set() if is_over else {*published[-1:], *sorted(over)[-1:]}
    for round_ in needed:
        path = directory / PUBLISHED_DIRECTORY / f"{call_number(round_, 'publish')}.safetensors"
        assert _bits(path) == run.models[round_ - 1], f"{path} is another model than was published"


def check_continuation(run: ServerRun, image: Path, marks: Sequence[Mark]) -> None:
    """Raise an error unless the server goes on with the run, to the same models as if nothing had happened."""
    check_image(run, image, marks)
    directory = image / RUN
    try:
        _serve(run, directory, None)
    except RunExists:
        with RunState(directory / STATE_FILE) as state:
            assert state.facts()["ended"], "a run that is not over was refused"
    assert _bits(directory / "model.safetensors") == run.models[-1], "the last model is another one"
    history = [RoundRecord.from_json(line) for line in (directory / "history.jsonl").read_text().splitlines()]
    assert [record.round for record in history] == list(range(1, len(run.models) + 1)), "the history lacks rounds"
    for record in history:
        assert record.updates.keys() == set(CLIENTS) and not record.failed
    assert json.loads((directory / "run.json").read_text())["job"] == run.job.contract.name


def _check_update(directory: Path, expected: dict[str, npt.NDArray[Any]]) -> None:
    tables = open_update(directory)
    for name, array in expected.items():
        found = tables[name]["value"].to_numpy()
        assert found.tobytes() == array.tobytes(), f"{directory}: tensor {name} has other elements than were sent"


def _bits(path: Path) -> dict[str, bytes]:
    return {name: array.tobytes() for name, array in load(path).items()}


def _job(directory: Path, rounds: int) -> Job:
    (directory / "code.py").write_text(CODE, encoding="utf-8")
    content = {
        "name": "power-loss",
        "clients": list(CLIENTS),
        "server": {"model": "code.py:initial_model", "rounds": rounds, "quorum": len(CLIENTS), "best": "accuracy:max"},
        "client": {"executor": "code.py"},
        "tasks": {"train": {"returns": "weights"}, "validate": {"returns": "metrics"}},
    }
    return Job(parse_contract(content, "the recorded job"), directory)


@contextmanager
def _clients_that_stay() -> Iterator[None]:
    """Give a client's answer the same id after each restart of the server, as a client that has kept it does."""
    constant = SimpleNamespace(token_hex=lambda nbytes: "0" * 2 * nbytes)
    with mock.patch.object(cached_answer, "secrets", constant):
        yield


def _serve(run: ServerRun, directory: Path, recorder: DiskRecorder | None) -> Outcome:
    """Run the server and its clients until the job is done."""
    clients: list[tuple[Client, Future[str]]] = []

    def started(server: Any, _: object) -> None:
        for name in CLIENTS:
            trainer = _Trainer(name, run)
            client = Client(run.job, trainer, _MarkingConnection(server, trainer, recorder))
            clients.append((client, client.start()))

    try:
        return serve(
            run.job,
            InProcessServer,
            started=started,
            wait_for=len(CLIENTS),
            directory=directory,
            observe=ignore_events if recorder is None else partial(run.observe, recorder),
            plan=run.plan,
            durability="disk",
        )
    finally:
        for client, ended in clients:
            client.stop()
            ended.exception(timeout=20)
