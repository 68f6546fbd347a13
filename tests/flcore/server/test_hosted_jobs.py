"""Jobs that share one server: real rounds side by side, and clients that wait until their job is hosted."""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from flcore_transport import GrpcConnection, GrpcServer, Service, split_address

from flcore import Site
from flcore.aggregation.budget import Budget
from flcore.client.client import Client
from flcore.errors import JobFailed, QuorumError
from flcore.server.serve import Server
from tests.flcore.conftest import Scripted, Stage, adding
from tests.transport.conftest import RecordingService


class HostedStage(Stage):
    """A job of a server that is shared."""

    def share(self, server: GrpcServer, job_id: str) -> "HostedStage":
        self.shared, self.job_id = server, job_id
        return self

    def listen(self, service: Service, budget: Budget) -> Server:
        return self.shared.host(self.job_id, service)

    def connect(self) -> GrpcConnection:
        connection = GrpcConnection(self.shared.address, job=self.job_id)
        self._connections.append(connection)
        return connection


@pytest.fixture
def hosted(tmp_path: Path, kernels: None) -> Iterator[Callable[[GrpcServer, str], HostedStage]]:
    """Makes jobs of a server."""
    pool, made = ThreadPoolExecutor(40), list[HostedStage]()

    def make(server: GrpcServer, job_id: str) -> HostedStage:
        directory = tmp_path / f"{job_id}-{len(made)}"
        directory.mkdir()
        made.append(HostedStage("grpc", directory, pool).share(server, job_id))
        return made[-1]

    yield make
    for stage in made:
        stage.close()
    pool.shutdown(cancel_futures=True)


@pytest.fixture
def server() -> Iterator[GrpcServer]:
    made = GrpcServer(RecordingService())
    yield made
    made.close("the test is over")


def test_jobs_side_by_side_have_their_own_rounds_and_goodbyes(
    server: GrpcServer, hosted: Callable[[GrpcServer, str], HostedStage]
) -> None:
    stages = {value: hosted(server, f"job-{value}") for value in (1, 2, 3)}
    for stage in stages.values():
        stage.open(rounds=3, clients=2)
    goodbyes = [
        stage.client(name, adding(float(value)))
        for value, stage in stages.items()
        for name in stage.job.contract.client_names
    ]
    for value, stage in stages.items():
        model = stage.result().model
        assert np.array_equal(np.asarray(model.arrays()["w"]), np.full((2, 3), 3 * value, np.float32))
    assert {goodbye.result(20) for goodbye in goodbyes} == {"the job is done"}


def test_one_job_fails_and_the_other_goes_on(
    server: GrpcServer, hosted: Callable[[GrpcServer, str], HostedStage]
) -> None:
    failing, going = hosted(server, "failing-1"), hosted(server, "going-1")
    for stage in (failing, going):
        stage.open(rounds=2, clients=1)
    name = going.job.contract.client_names[0]
    failed = failing.client(name, adding(float("nan")))
    done = going.client(name, adding(1.0))
    with pytest.raises(QuorumError):
        failing.result()
    with pytest.raises(JobFailed):
        failed.result(20)
    going.result()
    assert done.result(20) == "the job is done"


def test_a_client_waits_for_its_job_and_across_a_restart_of_the_server(
    server: GrpcServer, hosted: Callable[[GrpcServer, str], HostedStage]
) -> None:
    _, port = split_address(server.address)
    before, said = hosted(server, "waits-1"), list[str]()
    job = before.contract({"train": "weights"}, 2)
    names = job.contract.client_names
    site = Site(names[0], names)
    connection = GrpcConnection(server.address, job="waits-1")
    client = Client(job, Scripted(site, {"train": adding(1.0)}), connection, said.append)
    result: Future[str] = client.start()
    wait_for(said, "the server does not run the job 'waits-1' now")
    before.open(clients=2)
    wait_for(said, "joined")
    server.leave()  # the process has ended, as it seems to the client
    wait_for(said, "joining again")
    restarted = GrpcServer(RecordingService(), port=port)
    wait_for(said, "the server does not run the job 'waits-1' now", 2)
    after = hosted(restarted, "waits-1")
    after.open(clients=2)
    wait_for(said, "joined", 2)
    other = after.client(names[1], adding(1.0))
    after.result()
    assert result.result(20) == other.result(20) == "the job is done"
    client.stop()
    restarted.close("the test is over")


def wait_for(said: list[str], text: str, count: int = 1) -> None:
    """Wait until a client has said something so many times."""
    until = time.monotonic() + 20
    while sum(text in line for line in said) < count:
        assert time.monotonic() < until, said
        time.sleep(0.01)
