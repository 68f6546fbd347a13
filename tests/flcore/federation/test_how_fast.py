"""How fast a standing federation of real processes is: `pytest -s -m stress` prints the figures."""

import resource
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median

import pytest

import flcore
from flcore.federation.job_database import JobDatabase
from flcore.federation.job_rows import NewJob
from flcore.lead.submitted_job import SubmittedJob
from tests.faults.standing_federation import StandingFederation

CLIENTS = "ab"
ROUNDS = 3
JOBS = 20
TIMEOUT_S = 120.0
PAST, QUEUED = 1_000, 200


def until(is_so: Callable[[], object], what: str) -> None:
    end = time.monotonic() + TIMEOUT_S
    while not is_so():
        assert time.monotonic() < end, what
        time.sleep(0.005)


@pytest.fixture
def federation(tmp_path: Path) -> Iterator[StandingFederation]:
    """A server that runs one job at a time, and two agents that wait, each with a process for its next job."""
    with StandingFederation(tmp_path, CLIENTS, ROUNDS, elements=1000, train_s=0.0, slots=1) as federation:
        federation.start_server()
        until(lambda: "listening on" in federation.log("server"), "the server listens")
        for name in CLIENTS:
            federation.start_agent(name)
        yield federation


def connect(federation: StandingFederation) -> flcore.FederationConnection:
    return flcore.connect(server=f"localhost:{federation.port}", insecure=True, notify=print)


@pytest.mark.stress
def test_the_first_task_and_twenty_jobs_at_once(federation: StandingFederation) -> None:
    executions, waited_s = federation.directory / "executions", list[float]()
    with connect(federation) as lead:

        def submit(seed: int) -> SubmittedJob:
            return lead.submit(federation.job, {"seed": seed})

        submit(0).wait(TIMEOUT_S)  # what later jobs find warm
        for seed in range(7):
            time.sleep(3.0)  # both agents have a process for the next job again
            executions.unlink()
            began = time.monotonic()
            job = submit(seed)
            until(lambda: executions.exists() and executions.read_text().count("train 1\n") == len(CLIENTS), job.id)
            waited_s.append(time.monotonic() - began)
            job.wait(TIMEOUT_S)
        began = time.monotonic()
        for seed in range(JOBS):
            submit(seed).wait(TIMEOUT_S)
        one_by_one_s, began = time.monotonic() - began, time.monotonic()
        for job in [submit(seed) for seed in range(JOBS)]:
            assert job.wait(10 * TIMEOUT_S).state == "done"
        at_once_s = time.monotonic() - began
    print(f"\nfirst task at both sites after {median(waited_s):.2f} s ({min(waited_s):.2f} to {max(waited_s):.2f})")
    print(f"{JOBS} jobs: {one_by_one_s:.1f} s one by one, {at_once_s:.1f} s at once: {at_once_s / one_by_one_s:.2f}")
    assert median(waited_s) < 1.0
    assert at_once_s < 1.2 * one_by_one_s


@pytest.mark.stress
def test_commands_with_200_queued_and_1000_past_jobs(tmp_path: Path) -> None:
    with StandingFederation(tmp_path, CLIENTS, ROUNDS, elements=1000, train_s=0.0, slots=1) as federation:
        server = federation.start_server()
        until(lambda: "listening on" in federation.log("server"), "the server listens")
        federation.ask("submit", "jobs/killed")
        server.terminate()
        server.wait()
        with JobDatabase(tmp_path / "federation/federation.sqlite") as database:
            row = database.find("killed-1")
            assert row is not None
            job = NewJob(**{name: getattr(row, name) for name in NewJob.__dataclass_fields__})
            for number in range(2, PAST + QUEUED + 1):
                database.add(job)
                if number <= PAST + 1:
                    database.end(number, "done", "", ROUNDS, {"accuracy": 0.5})
        federation.start_server()
        until(lambda: federation.log("server").count("listening on") == 2, "the server listens again")
        print()
        for command in (
            ("list",),
            ("list", "--limit", "1000"),
            ("status",),
            ("show", "killed-1200"),
            ("status", "killed-500"),
            ("abort", "killed-1199"),
            ("submit", "jobs/killed"),
        ):
            own_s, waited_s = [], []
            for _ in range(5 if command[0] in ("list", "status", "show") else 1):
                before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
                federation.ask(*command)
                waited_s.append(time.monotonic() - began)
                after = resource.getrusage(resource.RUSAGE_CHILDREN)
                own_s.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
            print(f"flcore {' '.join(command)}: {median(waited_s):.2f} s, of it {median(own_s):.2f} s its own CPU")
