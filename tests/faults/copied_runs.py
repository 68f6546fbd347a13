"""Runs that end at a kill point, without a process: the run's directory is copied while the thread that reached the
point stands still.

A copy has what SIGKILL leaves, since the page cache outlives a process. One run without an interruption yields a copy
for each point; each copy is then continued by a new server and new clients in this process.
"""

import shutil
import sqlite3
import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from flcore_transport import (
    FromServer,
    InProcessConnection,
    InProcessServer,
    Join,
    Outbox,
    Receipt,
    Service,
    TaskAssignment,
    UploadRequest,
)

from flcore import Arrays, Job, RunExists, Site, Task, Update
from flcore.client.client import Client
from flcore.client.executor import Executor
from flcore.client.notices import NoticeLogger
from flcore.job.messages import AnswerContent, parse_content
from flcore.server import task_runner
from flcore.server.federation import Federation as ServedFederation
from flcore.server.federation_state import FederationState
from flcore.server.history import RoundRecord
from flcore.server.recorded_run import Durability
from flcore.server.serve import Outcome, Server, serve
from tests.faults.hooks import Hooks
from tests.faults.kill_points import CLIENTS, ROUNDS, KillPoint

JOB = f"""
name = "killed"
clients = {list(CLIENTS)}

[server]
model = "killed.py:initial_model"
rounds = {ROUNDS}
quorum = {len(CLIENTS)}
best = "accuracy:max"
checkpoint_every = 2
deadline_s = 60
on_quorum_failure = "fail"

[client]
executor = "killed.py"

[tasks.train]
returns = "weights"

[tasks.validate]
returns = "metrics"
"""

CODE = """
import numpy as np

def initial_model(seed):
    return {"w": np.ones((2, 300), np.float32), "v": np.ones(40), "h": np.ones(30, np.float16)}
"""
"""Three dtypes are three segments, so an update has three pieces, and is small all the same."""

ACCURACY = {1: 0.25, 2: 0.75, 3: 0.5, 4: 0.875, 5: 0.625, 6: 1.0, 7: 0.375}
CALLS = ("sample", "train", "validate", "publish")

Asked = Counter[tuple[str, str, int]]
"""How often each client was asked for an answer: by client, task and round."""


class ClientOrder:
    """Has the clients of an attempt work one after the other, so that only one thread changes files at a time."""

    def __init__(self, state: FederationState) -> None:
        self._state = state
        self._changed = threading.Condition()
        self._done: set[tuple[int, str]] = set()

    def wait(self, client: str, assignment_id: int) -> None:
        """Wait until the clients before this one have their receipts."""
        asked = self._state._attempts[assignment_id].attempt.clients
        earlier = {(assignment_id, each) for each in asked if each < client}
        with self._changed:
            assert self._changed.wait_for(lambda: earlier <= self._done, 60)

    def done(self, client: str, assignment_id: int) -> None:
        """The client has its receipt."""
        with self._changed:
            self._done.add((assignment_id, client))
            self._changed.notify_all()


class Answering(Executor):
    """A client whose answers follow from the model and the task."""

    def __init__(self, name: str, asked: Asked) -> None:
        self.site, self._notify, self._asked = Site(name, CLIENTS), NoticeLogger(), asked
        self._functions = {"train": self.train, "validate": self.validate, "head": self.train}
        self.last = ("", 0)

    def train(self, model: Arrays, task: Task) -> Update:
        self._count(task)
        draw = np.random.default_rng(task.seed)
        arrays = {
            name: (array * 0.5 + draw.standard_normal(array.shape)).astype(array.dtype) for name, array in model.items()
        }
        return Update(arrays, weight=1.0 + CLIENTS.index(self.site.name), metrics={"loss": float(draw.random())})

    def validate(self, model: Arrays, task: Task) -> Update:
        self._count(task)
        return Update(weight=1.0, metrics={"accuracy": ACCURACY[task.round], "mean": float(model["w"].mean())})

    def _count(self, task: Task) -> None:
        self._asked[self.site.name, task.name, task.round] += 1
        self.last = (task.name, task.round)


class OrderlyConnection(InProcessConnection):
    """A connection whose client takes its turn, and whose uploads have the same key in each run."""

    def __init__(self, server: InProcessServer, executor: Answering, order: ClientOrder) -> None:
        super().__init__(server)
        self._executor, self._order, self._client = executor, order, executor.site.name

    def session(self, join: Join) -> Iterator[FromServer]:
        for message in super().session(join):
            if isinstance(message, TaskAssignment):
                self._order.wait(self._client, message.assignment_id)
            yield message

    def upload(self, request: UploadRequest, outbox: Outbox) -> Receipt:
        upload_id = "-".join(map(str, self._executor.last))
        content = parse_content(AnswerContent, request.content).model_copy(update={"upload_id": upload_id})
        request = replace(request, content=content.to_bytes())
        receipt = super().upload(request, outbox)
        self._order.done(self._client, request.assignment_id)
        return receipt


@dataclass
class Federation:
    """Servers and clients of one job, one run after the other.

    Attributes:
        directory: Where the job and copies lie.
        plan: The server's plan.
        durability: The server's durability.
        asked: How often clients were asked in the last run.
        workflow: The source of a workflow `flow`, which may ask for the task `head`, too. Default: `fed_avg`.
        rounds: The number of rounds.
    """

    directory: Path
    plan: str
    durability: Durability
    asked: Asked = field(default_factory=Counter)
    workflow: str = ""
    rounds: int = ROUNDS

    server: InProcessServer = field(init=False)

    def __post_init__(self) -> None:
        (self.directory / "job").mkdir()
        job = JOB.replace(f"rounds = {ROUNDS}", f"rounds = {self.rounds}")
        if self.workflow:
            job = (
                job.replace("[client]", 'workflow = "flow.py:flow"\n\n[client]')
                + '\n[tasks.head]\nreturns = "weights"\n'
            )
            (self.directory / "job/flow.py").write_text(self.workflow)
        (self.directory / "job/job.toml").write_text(job)
        (self.directory / "job/killed.py").write_text(CODE)
        self._job = Job.load(self.directory / "job")

    def run(self, out: Path) -> Outcome:
        """Run the server in a directory, with new clients, to the end of the job."""
        self.asked = Counter()
        clients: list[Client] = []
        ended: list[Future[str]] = []

        def listen(service: Service) -> Server:
            return InProcessServer(service)

        def started(server: Server, service: ServedFederation) -> None:
            assert isinstance(server, InProcessServer)
            self.server, order = server, ClientOrder(service.state)
            for name in CLIENTS:
                executor = Answering(name, self.asked)
                clients.append(Client(self._job, executor, OrderlyConnection(server, executor, order)))
                ended.append(pool.submit(clients[-1].run))

        with ThreadPoolExecutor(len(CLIENTS)) as pool, mock.patch.object(task_runner, "SETTLE_TIME_S", 0.0):
            try:
                outcome = serve(
                    self._job,
                    listen,
                    started=started,
                    wait_for=len(CLIENTS),
                    directory=out,
                    plan=self.plan,
                    durability=self.durability,
                )
                for each in ended:
                    assert each.result(20) == "the job is done"
                return outcome
            finally:
                for client in clients:
                    client.stop()

    def run_with_copies(self, out: Path, points: list[KillPoint]) -> dict[KillPoint, Path]:
        """Run as `run`, and return a copy of the directory at each point."""
        copies: dict[KillPoint, Path] = {}

        def copy(point: KillPoint) -> None:
            copies[point] = self.directory / f"{out.name}-{len(copies) + 1:03d}"
            shutil.copytree(out, copies[point], ignore=shutil.ignore_patterns("*status.json*"))

        with Hooks(points, copy).installed():
            self.run(out)
        return copies


def recorded_answers(run: Path, durability: Durability) -> set[tuple[str, str, int]]:
    """Return the answers that the record of a run has: a restarted server asks for all others."""
    if not (run / "state.sqlite").exists():
        return set()
    aside = run.with_name(f"{run.name}-record")  # opening the record changes it
    aside.mkdir()
    for path in run.glob("state.sqlite*"):
        shutil.copy(path, aside)
    with sqlite3.connect(aside / "state.sqlite") as connection:
        if connection.execute("PRAGMA user_version").fetchone() == (0,):
            return set()
        rows = connection.execute("SELECT call, client FROM answers").fetchall()
        over = {number for (number,) in connection.execute("SELECT number FROM calls")}
        ((last,),) = connection.execute("SELECT coalesce(max(last_call), 0) FROM rounds")
    connection.close()
    # Answers go with the end of a validation, and updates with the end of a round. With memory, a round begins again
    # unless it is over.
    if durability == "memory":
        rows = []
        over = {number for number in over if _publication_of(number) <= last}
    rows += [(number, client) for number in over if _is_settled(number, over) for client in CLIENTS]
    return {(client, _kind(number), (number - 1) // len(CALLS) + 1) for number, client in rows}


def _is_settled(number: int, over: set[int]) -> bool:
    return _kind(number) == "validate" or (_kind(number) == "train" and _publication_of(number) in over)


def _publication_of(number: int) -> int:
    """Return the number of the publication in the round of a call."""
    return (number - 1) // len(CALLS) * len(CALLS) + CALLS.index("publish") + 1


def _kind(number: int) -> str:
    return CALLS[(number - 1) % len(CALLS)]


def results(run: Path) -> dict[str, bytes]:
    """Return the published models of a run, by file name."""
    return {path.name: path.read_bytes() for path in run.glob("*.safetensors")}


def rounds(history: list[RoundRecord]) -> list[Mapping[str, Any]]:
    """Return what is the same in each run of the records of rounds: all but times, and what was sent how often."""
    changing = {"seconds", "bytes_sent", "bytes_received"}
    lines: list[Mapping[str, Any]] = [
        {key: value for key, value in asdict(record).items() if key not in changing} for record in history
    ]
    for line in lines:
        for participation in line["updates"].values():
            del participation["seconds"]
    return lines


def history_of(run: Path) -> list[RoundRecord]:
    """Return the rounds in a run's history."""
    return [RoundRecord.from_json(line) for line in (run / "history.jsonl").read_text().splitlines()]


def is_over(federation: Federation, run: Path) -> bool:
    """Continue a run. Returns whether there was nothing to continue: the run is refused, because it is over."""
    try:
        federation.run(run)
    except RunExists:
        return True
    return False
