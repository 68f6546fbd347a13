"""A standing federation on loopback: a server, agents that run jobs in threads, and leads."""

import hashlib
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest
from flcore_layout import SegmentRange
from flcore_transport import (
    Ask,
    DownloadRequest,
    Failure,
    GrpcConnection,
    GrpcServer,
    Identity,
    Inbox,
    Join,
    Refused,
    Reply,
    Service,
    TaskAssignment,
    TransportError,
    Welcome,
    Withdrawal,
)

from flcore import Arrays, Job, Site, Task, Update
from flcore.aggregation.budget import Budget
from flcore.client.client import Client
from flcore.federation.lobby_messages import JobOffer
from flcore.federation.messages import (
    AbortJob,
    JobDetails,
    JobQueued,
    JobSummary,
    PackReceived,
    PutPack,
    RequestContent,
    ShowJob,
    SubmitJob,
    WaitForJob,
)
from flcore.federation.standing_server import AnswerAsk, FederationSettings, StandingServer
from flcore.job.messages import AgentJoinContent, Content, parse_content
from flcore.job.pack import pack_job
from flcore.job.parsing import contract_from_json
from tests.flcore.conftest import Function, Scripted, adding

ContentT = TypeVar("ContentT", bound=Content)

JOB = """
name = "{name}"
clients = {clients}

[server]
model = "code.py:initial_model"
workflow = "{workflow}"
rounds = {rounds}
quorum = {quorum}
deadline_s = 30

[client]
executor = "code.py"

[tasks.train]
returns = "weights"
"""

CODE = """
import numpy as np
import pytest

def initial_model(seed):
    return {"w": np.zeros((2, 3), np.float32)}

def train(model, task):
    raise NotImplementedError("the agents of these tests run functions of their own")
"""


ADD_ONE = adding(1.0)


def write_job(
    directory: Path,
    name: str = "small",
    *,
    clients: str = '["north", "south"]',
    rounds: int = 2,
    quorum: int = 2,
    workflow: str = "fed_avg",
    code: str = CODE,
    **files: str,
) -> Job:
    """Write a job's directory. `files` are further files, by their names without `.py`."""
    directory.mkdir(parents=True)
    contract = JOB.format(name=name, clients=clients, rounds=rounds, quorum=quorum, workflow=workflow)
    (directory / "job.toml").write_text(contract)
    (directory / "code.py").write_text(code)
    for file, text in files.items():
        (directory / f"{file}.py").write_text(text)
    return Job.load(directory)


def packed(job: Job) -> bytes:
    """Return a job's pack."""
    return pack_job(job, job.directory.parent / f"{job.directory.name}.flpack").path.read_bytes()


@dataclass(frozen=True)
class Person:
    """An identity as its certificate gives it."""

    name: str
    role: str = "lead"
    federation: str = "hospitals"

    @property
    def fingerprint(self) -> str:
        """A digest that differs for each."""
        return hashlib.sha256(f"{self.role}/{self.name}".encode()).hexdigest()


@dataclass(frozen=True)
class Lead:
    """Sends requests: over the wire, or as somebody with a certificate."""

    send: Callable[[Ask], Reply]

    def ask(self, request: Any, reply: type[ContentT], body: bytes = b"") -> tuple[ContentT, bytes]:
        """Send a request; return the content and the body of its reply."""
        answered = self.send(Ask(RequestContent(request=request).to_bytes(), body))
        return parse_content(reply, answered.content), answered.body

    def put(self, pack: bytes) -> str:
        """Send a pack in parts. Returns its digest."""
        digest, received = hashlib.sha256(pack).hexdigest(), 0
        while received < len(pack):
            body = pack[received : received + (1 << 20)]
            request = PutPack(digest=digest, nbytes=len(pack), offset=received)
            received = self.ask(request, PackReceived, body)[0].received
        return digest

    def submit(self, pack: bytes, **changes: Any) -> str:
        """Submit a pack. Returns the job's id."""
        dotted = {key.replace("__", "."): value for key, value in changes.items()}
        return self.ask(SubmitJob(digest=self.put(pack), changes=dotted), JobQueued)[0].id

    def show(self, job_id: str) -> JobDetails:
        """Return a job's details."""
        return self.ask(ShowJob(id=job_id), JobDetails)[0]

    def wait(self, job_id: str, timeout_s: float = 60.0) -> JobSummary:
        """Wait until a job is over."""
        until, seen = time.monotonic() + timeout_s, self.show(job_id).summary
        while seen.state in ("queued", "running"):
            assert time.monotonic() < until, seen
            seen = self.ask(WaitForJob(id=job_id, state=seen.state, round=seen.round), JobSummary)[0]
        return seen

    def wait_for(self, job_id: str, is_so: Callable[[JobDetails], bool], timeout_s: float = 30.0) -> JobDetails:
        """Ask until a job's details are as expected."""
        until = time.monotonic() + timeout_s
        while not is_so(found := self.show(job_id)):
            assert time.monotonic() < until, found
            time.sleep(0.02)
        return found

    def abort(self, job_id: str) -> None:
        """Abort a job."""
        self.send(Ask(RequestContent(request=AbortJob(id=job_id)).to_bytes()))


class Agent:
    """Joins the lobby as one site, and runs each job that it is offered in a thread.

    `refuse` returns why the site does not run a job; empty if it does.
    """

    def __init__(
        self, address: str, name: str, train: Function = ADD_ONE, refuse: Callable[[JobOffer], str] = lambda _: ""
    ) -> None:
        self.name, self.packs, self.ended = name, dict[str, bytes](), list[str]()
        self.offers, self.all_offered, self.started = list[str](), threading.Event(), list[float]()
        self._address, self._train, self._refuse = address, train, refuse
        self._clients: dict[int, Client] = {}
        self._lock = threading.Lock()
        self._connection = GrpcConnection(address)
        self._is_closed = False
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Leave the lobby, and end all jobs of the site."""
        self._is_closed = True
        self._connection.close()
        self.vanish()
        self._thread.join(10)

    def vanish(self) -> None:
        """End the connections of the site's jobs without a word."""
        with self._lock:
            clients = list(self._clients.values())
        for client in clients:
            client.stop()

    def _run(self) -> None:
        while not self._is_closed:
            try:
                secret = ""
                for message in self._connection.session(Join(self.name, "1", AgentJoinContent(version="").to_bytes())):
                    if isinstance(message, Welcome):
                        secret = message.session_secret
                    elif isinstance(message, TaskAssignment):
                        self._take_offer(secret, message)
                    elif isinstance(message, Withdrawal) and message.assignment_id:
                        self._end(message.assignment_id)
                    elif isinstance(message, Withdrawal):
                        self.all_offered.set()
            except TransportError:
                time.sleep(0.05)
            finally:
                if not self._is_closed:
                    self._connection.close()
                    self._connection = GrpcConnection(self._address)

    def _take_offer(self, secret: str, assignment: TaskAssignment) -> None:
        offer = parse_content(JobOffer, assignment.content)
        self.offers.append(offer.id)
        if reason := self._refuse(offer):
            self._connection.report(Failure(secret, assignment.assignment_id, reason))
            return
        if assignment.assignment_id in self._clients:  # offered again after a reconnect
            return
        self.packs[offer.id] = self._download(secret, assignment)[: offer.pack_nbytes]
        contract = contract_from_json(offer.contract, offer.id)
        site = Site(self.name, contract.client_names)
        connection = GrpcConnection(self._address, job=offer.id)
        client = Client(Job(contract, Path()), Scripted(site, {"train": self._timed}), connection)
        with self._lock:
            self._clients[assignment.assignment_id] = client
        threading.Thread(target=self._run_job, args=(offer.id, client), daemon=True).start()

    def _timed(self, model: Arrays, task: Task) -> Update:
        self.started.append(time.monotonic())
        return self._train(model, task)

    def _run_job(self, job_id: str, client: Client) -> None:
        try:
            self.ended.append(f"{job_id}: {client.run()}")
        except Exception as error:  # noqa: BLE001 - the test looks at how it ended
            self.ended.append(f"{job_id}: {error}")

    def _end(self, number: int) -> None:
        with self._lock:
            client = self._clients.pop(number, None)
        if client is not None:
            client.stop()

    def _download(self, secret: str, assignment: TaskAssignment) -> bytes:
        received = bytearray()

        class Sink:
            def write(self, _: SegmentRange, body: memoryview) -> None:
                received.extend(body)

        inbox = Inbox(assignment.payload, Sink())
        for piece in self._connection.download(DownloadRequest(secret, assignment.assignment_id), assignment.payload):
            inbox.accept(piece)
        inbox.finish()
        return bytes(received)


class Federation:
    """A standing server that can be stopped and started again on its port, with its agents."""

    def __init__(self, directory: Path, available_bytes: int | None = None, **settings: Any) -> None:
        self.directory, self._available_bytes = directory, available_bytes
        self.settings = FederationSettings(**{"budget": Budget(256 << 20)} | settings)
        self.port, self.agents = 0, list[Agent]()
        self._connections: list[GrpcConnection] = []
        self.start()

    def start(self) -> None:
        """Start the server."""

        def listen(service: Service, answer: AnswerAsk) -> GrpcServer:
            return GrpcServer(service, port=self.port, answer=answer)

        self.server = StandingServer(self.directory, listen, self.settings, self._available_bytes)
        self.port = int(self.server.address.rpartition(":")[2])

    def agent(self, name: str, train: Function = ADD_ONE, refuse: Callable[[JobOffer], str] = lambda _: "") -> Agent:
        """Start a site's agent."""
        self.agents.append(Agent(self.server.address, name, train, refuse))
        return self.agents[-1]

    def lead(self) -> Lead:
        """A caller over the wire, in plaintext: an admin."""
        self._connections.append(GrpcConnection(self.server.address))
        return Lead(self._connections[-1].ask)

    def person(self, name: str, role: str = "lead") -> Lead:
        """A caller with a certificate, past the wire."""
        identity: Identity = Person(name, role)

        def send(ask: Ask) -> Reply:
            reply = self.server._answer(identity, ask)
            return reply if isinstance(reply, Reply) else reply.result(30)

        return Lead(send)

    def close(self) -> None:
        """End all of it."""
        for agent in self.agents:
            agent.close()
        for connection in self._connections:
            connection.close()
        self.server.close()


@contextmanager
def refused(kind: str, words: str = "") -> Iterator[None]:
    """A block that is refused for this reason."""
    with pytest.raises(Refused) as found:
        yield
    assert found.value.kind == kind, found.value
    assert words in str(found.value), found.value


def model_of(directory: Path, job_id: str) -> np.ndarray[Any, Any]:
    """Return the tensor of a job's last model."""
    from flcore.model.checkpoint import open_model

    with open_model(directory / "jobs" / job_id / "run/model.safetensors") as stored:
        return np.array(stored.tensor("w"))
