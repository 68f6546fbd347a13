"""A federation on a stage: a server in a thread, and clients whose code is written in the test.

Every test of it runs over real gRPC on loopback and on the in-process twin.
"""

import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import numpy as np
import pytest
from flcore_kernels import backend
from flcore_transport import (
    GrpcConnection,
    GrpcServer,
    InProcessConnection,
    InProcessServer,
    Join,
    Service,
    TransportError,
    Welcome,
)

from flcore import Arrays, Job, Outcome, Site, Task, Update
from flcore.aggregation.budget import DEFAULT_BUDGET, Budget
from flcore.client.client import Client
from flcore.client.executor import Executor
from flcore.client.notices import NoticeLogger
from flcore.job.messages import JoinContent
from flcore.job.parsing import parse_contract
from flcore.server import task_runner
from flcore.server.events import Event
from flcore.server.federation import Federation
from flcore.server.recorded_run import Durability
from flcore.server.serve import Server, serve

Function = Callable[[Arrays, Task], Update]

START = {"w": np.zeros((2, 3), np.float32), "b": np.zeros(300, np.float32)}


SERVER = {"model": "code.py:initial_model", "rounds": 1, "deadline_s": 30, "on_quorum_failure": "fail"}

CODE = """
import numpy as np

def initial_model(seed):
    return {"w": np.zeros((2, 3), np.float32), "b": np.zeros(300, np.float32)}
"""


def adding(value: float, weight: float = 1.0) -> Function:
    """A client that adds a value to every element."""

    def train(model: Arrays, _: Task) -> Update:
        arrays = {name: array + np.float32(value) for name, array in model.items()}
        return Update(arrays, weight=weight, metrics={"added": value})

    return train


class Scripted(Executor):
    """An executor whose functions are the test's."""

    def __init__(self, site: Site, functions: Mapping[str, Function]) -> None:
        self.site, self._notify = site, NoticeLogger()
        self._functions = dict(functions)


@dataclass
class Stage:
    """One server and its clients. Keys given to `open` replace those of the contract."""

    transport: str
    directory: Path
    pool: ThreadPoolExecutor
    events: list[Event] = field(default_factory=list)

    def contract(self, tasks: Mapping[str, str], clients: Any = 3, **server: Any) -> Job:
        (self.directory / "code.py").write_text(CODE)
        bounds = server.pop("bounds", {"max_weight": 1000, "max_abs": 100, "max_metrics": 3})
        client = {"executor": "code.py", "hyperparameters": server.pop("hyperparameters", {})}
        same_code, wire = server.pop("same_code", False), server.pop("wire", {})
        content = {
            "name": "staged",
            "clients": clients,
            "same_code": same_code,
            "server": SERVER | server,
            "client": client,
            "tasks": {name: {"returns": returns} for name, returns in tasks.items()},
            "bounds": bounds,
            "wire": wire,
        }
        return Job(parse_contract(content, "the test's contract"), self.directory)

    def open(
        self,
        *,
        wait_for: int | None = None,
        tasks: Mapping[str, str] | None = None,
        clients: Any = 3,
        out: Path | None = None,
        plan: str = "batch",
        budget: Budget = DEFAULT_BUDGET,
        durability: Durability = "memory",
        fresh: bool = False,
        **server: Any,
    ) -> None:
        """Start the server; its outcome is `result()`."""
        self.job = self.contract(tasks or {"train": "weights"}, clients, **server)
        listening: Future[Server] = Future()

        def started(server: Server, federation: Federation) -> None:
            self.federation = federation
            listening.set_result(server)

        def run() -> Outcome:
            try:
                return serve(
                    self.job,
                    lambda service: self.listen(service, budget),
                    started=started,
                    wait_for=wait_for,
                    directory=out,
                    fresh=fresh,
                    observe=self.events.append,
                    plan=plan,
                    budget=budget,
                    durability=durability,
                )
            except BaseException as error:
                if not listening.done():
                    listening.set_exception(error)
                raise

        self.outcome = self.pool.submit(run)
        self.server = listening.result(20)
        self._clients: list[Client] = []
        self._connections: list[GrpcConnection | InProcessConnection] = []

    def listen(self, service: Service, budget: Budget) -> Server:
        if self.transport == "in-process":
            return InProcessServer(service)
        return GrpcServer(service, in_flight_bytes=budget.in_flight_bytes)

    def connect(self) -> GrpcConnection | InProcessConnection:
        if isinstance(self.server, InProcessServer):
            self._connections.append(InProcessConnection(self.server))
        else:
            self._connections.append(GrpcConnection(self.server.address))
        return self._connections[-1]

    def client(
        self, name: str, train: Function | None = None, job: Job | None = None, **functions: Function
    ) -> "Future[str]":
        """Start a client; the future is the reason of the server's goodbye."""
        functions |= {} if train is None else {"train": train}
        return self.start_client(name, functions, self.connect(), job)

    def start_client(
        self,
        name: str,
        functions: Mapping[str, Function],
        connection: GrpcConnection | InProcessConnection,
        job: Job | None = None,
    ) -> "Future[str]":
        """Start a client on a connection of the test's own."""
        site = Site(name, self.job.contract.client_names)
        client = Client(job or self.job, Scripted(site, functions), connection)
        self._clients.append(client)
        return self.pool.submit(client.run)

    def join(self, name: str) -> tuple[str, Iterator[Any]]:
        """Join by hand, for a client that does not keep to the rules; return its session's secret and its stream."""
        held = JoinContent(contract=self.job.contract.to_json(), code_digest="", version="")
        stream = self.connect().session(Join(name, "1", held.to_bytes()))
        welcome = next(stream)
        assert isinstance(welcome, Welcome)
        return welcome.session_secret, stream

    def result(self) -> Outcome:
        return self.outcome.result(60)

    def close(self) -> None:
        for client in getattr(self, "_clients", []):
            client.stop()
        if hasattr(self, "server"):
            self.federation.state.stop_waiting("the test is over")
            self.server.close("the test is over")
            for connection in self._connections:
                connection.close()


def read_ahead(stream: Iterator[Any]) -> Iterator[Any]:
    """Read a session's stream on a thread: so its client hangs up at the goodbye, for which the server waits."""
    messages: SimpleQueue[Any] = SimpleQueue()

    def read() -> None:
        with suppress(TransportError):
            for message in stream:
                messages.put(message)
        messages.put(None)

    threading.Thread(target=read, daemon=True).start()
    return iter(messages.get, None)


@pytest.fixture(autouse=True)
def no_time_to_settle(monkeypatch: pytest.MonkeyPatch) -> None:
    """Begin the first round at once: the clients of tests that have joined stay."""
    monkeypatch.setattr(task_runner, "SETTLE_TIME_S", 0.0)


@pytest.fixture(scope="session")
def kernels() -> None:
    """Have the usual kernels in memory: loading them takes longer than some tests let a client be silent."""
    cpu, part = backend("cpu"), np.ones(1, np.float32)
    cpu.inspect(part, "float32")
    cpu.mean([part], [1.0], np.empty_like(part), "float32")


@pytest.fixture(params=["grpc", "in-process"])
def stage(request: pytest.FixtureRequest, tmp_path: Path, kernels: None) -> Iterator[Stage]:
    pool = ThreadPoolExecutor(80)
    made = Stage(request.param, tmp_path, pool)
    yield made
    made.close()
    pool.shutdown(cancel_futures=True)


def mean_of(outcome: Outcome) -> set[float]:
    """The values that occur in the last model."""
    return {float(value) for array in outcome.model.arrays().values() for value in array.reshape(-1)}
