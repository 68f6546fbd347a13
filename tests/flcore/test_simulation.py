"""`flcore.run`: the same bits whoever hosts the clients, and the digits result that the README promises."""

import sys
from pathlib import Path

import flcore_transport
import numpy as np
import pytest
from flcore_transport import GrpcServer, InProcessServer, Service
from sklearn.datasets import load_digits
from threadpoolctl import threadpool_limits

import flcore
from flcore import Job, JobError, Model
from flcore.aggregation.budget import DEFAULT_BUDGET
from flcore.jobs.digits.digits import digits_file
from flcore.simulation.baselines import compute_baselines
from tests.reference import bits_of


def test_the_same_job_gives_the_same_bits_however_its_clients_are_hosted() -> None:
    with threadpool_limits(1):  # as in a worker: on some processors a matrix product's bits depend on BLAS's threads
        in_threads = flcore.run("digits", workers=0, rounds=3)
        again = flcore.run("digits", workers=0, rounds=3)
    in_processes = flcore.run("digits", workers=2, rounds=3)
    assert bits_of(in_threads.model) == bits_of(again.model) == bits_of(in_processes.model)
    assert bits_of(flcore.run("digits", workers=0, rounds=3, seed=8).model) != bits_of(again.model)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_the_federated_model_beats_every_lone_client_and_nears_the_centralised_one(seed: int) -> None:
    job = Job.load("digits", seed=seed)
    history, model = flcore.run(job, workers=0)
    baselines = compute_baselines(job)
    assert baselines is not None
    assert isinstance(model, Model)
    federated = history[-1].validate["accuracy"]
    assert federated > max(baselines.alone.values()) + 0.10
    assert federated > baselines.centralised - 0.02
    assert len(history) == 60 and all(len(record.updates) == 6 for record in history)


def test_fifty_clients_in_two_processes(tmp_path: Path) -> None:
    history, _ = flcore.run("digits", clients=50, workers=2, rounds=3, out=tmp_path)
    assert [len(record.updates) for record in history] == [50, 50, 50]
    assert {file.name for file in tmp_path.iterdir()} - {"run.json", "audit.jsonl", "state.sqlite"} == {
        "history.jsonl",
        "model.safetensors",
        "best.safetensors",
    }
    loaded = flcore.load(tmp_path / "model.safetensors")
    assert loaded["hidden.weight"].dtype == np.float32


def test_more_clients_than_scans_are_refused() -> None:
    with pytest.raises(JobError, match="too few for 400 clients"):
        flcore.run("digits", clients=400, workers=0)


@pytest.mark.parametrize("workers", [0, 1])
def test_pieces_in_flight_stay_within_the_budget(workers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    in_flight = list[int]()

    class RecordingGrpcServer(GrpcServer):
        def __init__(self, service: Service, *, in_flight_bytes: int, max_connections: int) -> None:
            in_flight.append(in_flight_bytes)
            super().__init__(service, in_flight_bytes=in_flight_bytes, max_connections=max_connections)

    class RecordingInProcessServer(InProcessServer):
        def __init__(self, service: Service, *, in_flight_bytes: int) -> None:
            in_flight.append(in_flight_bytes)
            super().__init__(service, in_flight_bytes=in_flight_bytes)

    monkeypatch.setattr(flcore_transport, "GrpcServer", RecordingGrpcServer, raising=False)
    monkeypatch.setattr(sys.modules["flcore.simulation.run"], "InProcessServer", RecordingInProcessServer)
    flcore.run("digits", clients=2, workers=workers, rounds=1)
    assert in_flight == [DEFAULT_BUDGET.in_flight_bytes] and in_flight[0] <= 128 << 20


def test_a_number_of_workers_below_zero_is_refused() -> None:
    with pytest.raises(ValueError, match="workers is a number >= 0, not -1"):
        flcore.run("digits", workers=-1)


def test_the_digits_are_those_that_scikit_learn_loads() -> None:
    table = np.loadtxt(digits_file(), delimiter=",")
    pixels, digits = load_digits(return_X_y=True)
    assert np.array_equal(table[:, :-1], pixels) and np.array_equal(table[:, -1], digits)
