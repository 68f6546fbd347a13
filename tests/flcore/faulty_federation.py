"""A federation over gRPC whose client `far` reaches the server through a network with faults; `near` has none.

Both clients are deterministic. `Log` keeps what each execution was given, so that a disturbed run can be compared with
an undisturbed one, execution by execution and bit by bit.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xxhash
from flcore_layout import Layout
from flcore_transport import (
    DownloadRequest,
    GrpcConnection,
    GrpcServer,
    Outbox,
    Receipt,
    Service,
    TlsKeys,
    UploadRequest,
    grpc_client,
    grpc_heartbeat,
    grpc_server,
    split_address,
)
from flcore_transport.identity import ServerTls

from flcore import Arrays, Outcome, Task, Update
from flcore.aggregation.budget import Budget
from flcore.client import client as client_module
from flcore.client import outage
from flcore.server.serve import Server
from tests.flcore.conftest import Function, Stage
from tests.flcore.network import Fault, Network, network_to
from tests.reference import bits_of

NO_FAULT = Fault()
Execution = tuple[str, str, int, int, str, str]
"""Client, task, round, seed, hyperparameters, and the digest of the model."""

CODE = """
import numpy as np

def initial_model(seed):
    return {{"w": np.linspace(-1, 1, {elements}, dtype=np.float32)}}
"""


KEEPALIVE_MS = 1_000
"""Short, but long enough for a busy machine: a ping that is answered late ends the connection."""


def hurry(monkeypatch: pytest.MonkeyPatch, keepalive_ms: int = KEEPALIVE_MS) -> None:
    """Make retries, keepalives and heartbeats faster than those of a job."""
    monkeypatch.setattr(grpc_heartbeat, "HEARTBEAT_INTERVAL_S", 0.5)
    monkeypatch.setattr(grpc_heartbeat, "SILENCE_TIMEOUT_S", 3.0)
    monkeypatch.setattr(client_module, "RETRY_S", 0.02)
    monkeypatch.setattr(outage, "FIRST_DELAY_S", 0.02)
    monkeypatch.setattr(outage, "MAX_DELAY_S", 0.1)
    alive = dict.fromkeys(("keepalive_time_ms", "keepalive_timeout_ms", "http2.ping_timeout_ms"), keepalive_ms)
    pings = {"http2.min_ping_interval_without_data_ms": 100, "http2.max_ping_strikes": 0}
    for module, name, changes in (
        (grpc_client, "CHANNEL_OPTIONS", alive),
        (grpc_server, "SERVER_OPTIONS", alive | pings),
    ):
        options = dict(getattr(module, name)) | {f"grpc.{option}": value for option, value in changes.items()}
        monkeypatch.setattr(module, name, list(options.items()))


@dataclass
class Log:
    """The executions of all clients."""

    executions: list[Execution] = field(default_factory=list)

    def count(self, client: str) -> int:
        """Return how many tasks a client has executed."""
        return sum(execution[0] == client for execution in self.executions)

    def function(self, client: str, value: float, weight: float) -> Function:
        """Return a deterministic task function: each round's update differs in every element."""

        def run(model: Arrays, task: Task) -> Update:
            flat = np.asarray(model["w"])
            digest = xxhash.xxh3_64_hexdigest(flat.tobytes())
            self.executions.append((client, task.name, task.round, task.seed, repr(task.hyperparameters), digest))
            if task.name == "validate":
                return Update(weight=weight, metrics={"seen": float(flat[7])})
            # Of the round: a model that stayed as it is would not be sent again.
            step = np.float32(value + task.round)
            return Update({"w": flat * np.float32(0.5) + step}, weight=weight, metrics={"added": value})

        return run


class CountingConnection(GrpcConnection):
    """A connection that tells the test of each new transfer, and counts how often each piece is sent up.

    Attributes:
        sent: How often each piece was sent, by assignment and index.
        receipts: How many receipts have come, by assignment.
    """

    def __init__(self, address: str, begins: Callable[[str, int], None], keys: TlsKeys | None = None) -> None:
        super().__init__(address, keys=keys)
        self.sent: Counter[tuple[int, int]] = Counter()
        self.receipts: Counter[int] = Counter()
        self._begins, self._begun = begins, set[tuple[str, int]]()

    def download(self, request: DownloadRequest, layout: Layout | None = None) -> Iterator[bytes]:
        self._begin("download", request.assignment_id)
        return super().download(request, layout)

    def upload(self, request: UploadRequest, outbox: Outbox) -> Receipt:
        self._begin("upload", request.assignment_id)
        piece = outbox.piece

        def counted(index: int) -> bytes:
            self.sent[request.assignment_id, index] += 1
            return piece(index)

        outbox.piece = counted  # type: ignore[method-assign]
        try:
            receipt = super().upload(request, outbox)
        finally:
            del outbox.piece  # the client sends the same outbox again
        self.receipts[request.assignment_id] += 1
        return receipt

    def _begin(self, direction: str, assignment_id: int) -> None:
        if (direction, assignment_id) not in self._begun:
            self._begun.add((direction, assignment_id))
            self._begins(direction, assignment_id)


class FaultyStage(Stage):
    """A stage over gRPC, in plaintext or over TLS."""

    tls: ServerTls | None = None
    keys: TlsKeys | None = None

    def listen(self, service: Service, budget: Budget) -> Server:
        return GrpcServer(service, in_flight_bytes=budget.in_flight_bytes, tls=self.tls)


@dataclass
class Trial:
    """One run of a federation.

    Attributes:
        network: The network between `far` and the server.
        log: The executions.
        far: The connection of `far`.
        goodbyes: The futures of both clients.
    """

    stage: FaultyStage
    network: Network
    log: Log
    far: CountingConnection
    goodbyes: "list[Future[str]]"

    def result(self, timeout_s: float = 60) -> Outcome:
        return self.stage.outcome.result(timeout_s)


@contextmanager
def federation(
    directory: Path,
    elements: int,
    begins: Callable[[Network, str, int, int], None] = lambda *_: None,
    *,
    tls: tuple[ServerTls, dict[str, TlsKeys]] | None = None,
    first: Fault = NO_FAULT,
    **server: Any,
) -> Iterator[Trial]:
    """Run a federation while the block lasts.

    Args:
        directory: For the code of the job.
        elements: The elements of the model, all float32.
        begins: Called before the first call of each transfer of `far`, with the network, "download" or "upload", the
            assignment's id, and how many tasks `far` has executed so far.
        tls: The server's TLS, and the keys of each client. Default: plaintext.
        first: The fault of the first connection of `far`, that of its session.
        server: Arguments of `Stage.open`.
    """
    directory.mkdir(exist_ok=True)
    (directory / "large.py").write_text(CODE.format(elements=elements))
    names = ["far", "near"]
    pool, log = ThreadPoolExecutor(8), Log()
    stage = FaultyStage("grpc", directory, pool)
    stage.tls = tls[0] if tls else None
    options: dict[str, Any] = {"model": "large.py:initial_model", "quorum": len(names)} | server
    bounds = {"max_weight": 1000, "max_abs": 1e6, "max_metrics": 3}
    try:
        stage.open(
            wait_for=len(names),
            clients=names,
            bounds=bounds,
            **options,
        )
        assert isinstance(stage.server, GrpcServer)
        port = split_address(stage.server.address)[1]
        with network_to(port) as network:
            network.inject(first)
            goodbyes, far = [], None

            def told(transfer: str, assignment_id: int) -> None:
                begins(network, transfer, assignment_id, log.count("far"))

            for name in names:
                keys = tls[1][name] if tls else None
                address = f"localhost:{network.port if name == 'far' else port}"
                connection = CountingConnection(address, told if name == "far" else lambda *_: None, keys)
                far = connection if name == "far" else far
                function = log.function(name, 1.25 if name == "far" else -3.5, 3.0 if name == "far" else 1.0)
                goodbyes.append(stage.start_client(name, dict.fromkeys(("train", "validate"), function), connection))
            assert far is not None
            yield Trial(stage, network, log, far, goodbyes)
            stage.close()
    finally:
        stage.close()
        pool.shutdown(cancel_futures=True)


@dataclass(frozen=True)
class Result:
    """The parts of a run that no fault may change."""

    model: bytes
    executions: frozenset[Execution]
    updates: tuple[tuple[tuple[str, float, tuple[tuple[str, float], ...]], ...], ...]
    metrics: tuple[tuple[tuple[str, float], ...], ...]

    @classmethod
    def of(cls, outcome: Outcome, log: Log) -> "Result":
        updates = tuple(
            tuple(
                (name, part.weight, tuple(sorted(part.metrics.items())))
                for name, part in sorted(record.updates.items())
            )
            for record in outcome.history
        )
        metrics = tuple(tuple(sorted((record.train | record.validate).items())) for record in outcome.history)
        return cls(bits_of(outcome.model), frozenset(log.executions), updates, metrics)
