"""Observers of a standing federation's runs: each job has its own, from its start to its end."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from flcore.server.events import Event, Observer, RoundFinished, RunEnded, RunStarted
from flcore.status.observed_run import ObservedRun
from tests.flcore.conftest import adding
from tests.flcore.federation.small_federation import Federation, packed, write_job

ROUNDS = 2


class Watched:
    """What an observer has seen: the rounds of each job, and the jobs whose observer is open."""

    def __init__(self) -> None:
        self.rounds: dict[str, list[int]] = {}
        self.ends: dict[str, str] = {}
        self.open: set[str] = set()
        self.closed = threading.Semaphore(0)

    @contextmanager
    def observe_run(self, run: ObservedRun) -> Iterator[Observer]:
        def observe(event: Event) -> None:
            match event:
                case RunStarted():
                    self.rounds[run.id] = []
                case RoundFinished():
                    assert run.board.snapshot().rounds_over == event.record.round, "the board knows of it"
                    self.rounds[run.id].append(event.record.round)
                case RunEnded():
                    self.ends[run.id] = event.end

        assert run.directory.name == "run" and run.contract.server.rounds == ROUNDS
        self.open.add(run.id)
        yield observe
        self.open.remove(run.id)
        self.closed.release()


@pytest.fixture
def watched() -> Watched:
    return Watched()


@pytest.fixture
def federation(tmp_path: Path, watched: Watched) -> Iterator[Federation]:
    running = Federation(tmp_path / "federation", observe_runs=(watched.observe_run,))
    yield running
    running.close()


def test_each_job_has_its_observer_from_start_to_end(federation: Federation, watched: Watched, tmp_path: Path) -> None:
    for site in ("north", "south"):
        federation.agent(site, adding(1.0))
    pack, lead = packed(write_job(tmp_path / "small", rounds=ROUNDS)), federation.person("alice")
    jobs = [lead.submit(pack) for _ in range(2)]
    for job_id in jobs:
        assert lead.wait(job_id).state == "done"
        assert watched.closed.acquire(timeout=60)
    assert watched.rounds == {job_id: [1, 2] for job_id in jobs}
    assert watched.ends == dict.fromkeys(jobs, "done") and watched.open == set()


def test_the_metrics_of_a_federation_have_its_jobs_its_queue_and_its_sites(tmp_path: Path) -> None:
    pytest.importorskip("prometheus_client")
    from flcore.metrics.server_metrics import ServerMetrics
    from tests.flcore.metrics.test_server_metrics import scrape, value

    metrics, gate = ServerMetrics(tmp_path), threading.Event()

    def waiting(model, task):  # type: ignore[no-untyped-def]
        assert gate.wait(60)
        return adding(1.0)(model, task)

    federation = Federation(tmp_path / "federation", observe_runs=(metrics.observe_run,))
    metrics.show_federation(federation.server.state)
    try:
        for site in ("north", "south"):
            federation.agent(site, waiting)
        pack, lead = packed(write_job(tmp_path / "small", rounds=ROUNDS)), federation.person("alice")
        jobs = [lead.submit(pack) for _ in range(3)]
        lead.wait_for(jobs[0], lambda found: found.summary.state == "running")
        samples = scrape(metrics)
        assert value(samples, "flcore_queued_jobs") == 2 and value(samples, "flcore_connected_sites") == 2
        gate.set()
        for job_id in jobs:
            assert lead.wait(job_id).state == "done"
        samples = scrape(metrics)
        assert value(samples, "flcore_queued_jobs") == 0
        for job_id in jobs:
            assert value(samples, "flcore_rounds_total", job_id=job_id) == ROUNDS
            assert value(samples, "flcore_answers_total", job_id=job_id) == 2 * ROUNDS
    finally:
        gate.set()
        federation.close()
