"""Restarts and kills: whatever a moment leaves on the disk, the next start goes on from it, to the same model."""

import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flcore import Arrays, Task, Update
from flcore.errors import RunExists
from flcore.federation.job_database import JobDatabase
from flcore.federation.job_files import JobDirectories
from flcore.federation.messages import DeleteJob, Done, JobList, ListJobs
from flcore.federation.pack_store import PackStore
from flcore.job.pack import Pack
from flcore.server.run_directory import RunDirectory
from tests.flcore.conftest import adding
from tests.flcore.federation.small_federation import Federation, model_of, packed, write_job

Start = Callable[..., Federation]


class Copies:
    """Copies a federation's directory when a method is called, as a kill at this moment would leave it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, directory: Path, out: Path) -> None:
        self._monkeypatch, self._directory, self._out = monkeypatch, directory, out
        self.names: list[str] = []

    def take(self, name: str) -> None:
        """Copy the directory, once for each name."""
        if name not in self.names:
            self.names.append(name)
            shutil.copytree(
                self._directory,
                self._out / name,
                ignore=shutil.ignore_patterns("*-shm", "*status.json*"),
                symlinks=True,
            )

    def around(self, owner: type, method: str) -> None:
        """Copy before and after each call of a method."""
        original = getattr(owner, method)

        def copying(*arguments: Any, **named: Any) -> Any:
            self.take(f"before {method}")
            result = original(*arguments, **named)
            self.take(f"after {method}")
            return result

        self._monkeypatch.setattr(owner, method, copying)


def test_a_kill_at_any_step_of_a_job_leaves_a_state_from_which_the_start_goes_on(
    monkeypatch: pytest.MonkeyPatch, federation_in: Start, tmp_path: Path
) -> None:
    federation = federation_in()
    copies = Copies(monkeypatch, federation.directory, tmp_path / "copies")
    for owner, method in (
        (JobDatabase, "add"),
        (JobDatabase, "start"),
        (Pack, "unpack"),
        (RunDirectory, "append"),
        (RunDirectory, "finish"),
        (JobDatabase, "end"),
        (JobDatabase, "delete"),
        (JobDirectories, "remove"),
        (PackStore, "end_use"),
    ):
        copies.around(owner, method)
    for name in ("north", "south"):
        federation.agent(name)
    lead = federation.lead()
    job_id = lead.submit(packed(write_job(tmp_path / "small")))
    assert lead.wait(job_id).state == "done"
    lead.ask(DeleteJob(id=job_id), Done)
    federation.close()
    monkeypatch.undo()
    assert len(copies.names) == 18
    for name in copies.names:
        copy = Federation(tmp_path / "copies" / name)
        try:
            expect_the_job_to_go_on(copy, name)
        finally:
            copy.close()


def expect_the_job_to_go_on(copy: Federation, name: str) -> None:
    lead = copy.lead()
    jobs = lead.ask(ListJobs(), JobList)[0].jobs
    if name in ("before add", "after delete", "before remove", "after remove", "before end_use", "after end_use"):
        assert jobs == [], name
        assert list((copy.directory / "jobs").iterdir()) == [], name
        return
    for site in ("north", "south"):
        copy.agent(site)
    (job,) = jobs
    summary = lead.wait(job.id)
    assert (summary.state, summary.round) == ("done", 2), (name, summary)
    assert np.all(model_of(copy.directory, job.id) == 2.0), name


def test_running_and_queued_jobs_go_on_after_a_restart_with_the_same_agents(
    federation_in: Start, tmp_path: Path
) -> None:
    federation = federation_in(slots=2)
    rounds, has_restarted = 6, threading.Event()

    def held(model: Arrays, task: Task) -> Update:
        if task.round > 2:
            assert has_restarted.wait(60.0)
        return adding(1.0)(model, task)

    for name in ("north", "south"):
        federation.agent(name, held)
    lead, pack = federation.lead(), packed(write_job(tmp_path / "small", rounds=rounds))
    ids = [lead.submit(pack) for _ in range(3)]
    for job_id in ids[:2]:
        lead.wait_for(job_id, lambda found: found.summary.round >= 2)
    federation.server.close()
    federation.start()
    lead = federation.lead()
    states = {job.id: job.state for job in lead.ask(ListJobs(), JobList)[0].jobs}
    assert states == {ids[0]: "running", ids[1]: "running", ids[2]: "queued"}
    has_restarted.set()
    for job_id in ids:
        summary = lead.wait(job_id)
        assert (summary.state, summary.round) == ("done", rounds)
        assert np.all(model_of(federation.directory, job_id) == rounds)
    log = (federation.directory / "jobs" / ids[0] / "server.log").read_text()
    assert f"of its {rounds} rounds are over" in log, "it went on, and did not begin anew"


def test_with_fewer_slots_than_before_running_jobs_take_turns(federation_in: Start, tmp_path: Path) -> None:
    federation = federation_in(slots=2)
    may_end = threading.Event()

    def slow(model: Arrays, task: Task) -> Update:
        may_end.wait(20)
        return adding(1.0)(model, task)

    for name in ("north", "south"):
        federation.agent(name, slow)
    lead, pack = federation.lead(), packed(write_job(tmp_path / "small", rounds=1))
    ids = [lead.submit(pack) for _ in range(2)]
    for job_id in ids:
        lead.wait_for(job_id, lambda found: found.sites == {"north": "joined", "south": "joined"})
    federation.server.close()
    may_end.set()
    federation.settings = type(federation.settings)(federation.settings.budget, slots=1)
    federation.start()
    lead = federation.lead()
    assert [lead.wait(job_id).state for job_id in ids] == ["done", "done"]


def test_an_aborted_job_stays_aborted_and_is_not_offered_after_a_restart(federation_in: Start, tmp_path: Path) -> None:
    federation = federation_in()
    never = threading.Event()

    def slow(model: Arrays, task: Task) -> Update:
        never.wait(5)
        return adding(1.0)(model, task)

    agents = [federation.agent(name, slow) for name in ("north", "south")]
    lead = federation.lead()
    job_id = lead.submit(packed(write_job(tmp_path / "small")))
    lead.wait_for(job_id, lambda found: found.sites == {"north": "joined", "south": "joined"})
    lead.abort(job_id)
    federation.server.close()
    for agent in agents:
        agent.offers.clear()
        agent.all_offered.clear()
    federation.start()
    assert all(agent.all_offered.wait(10) for agent in agents)
    assert [agent.offers for agent in agents] == [[], []]
    assert federation.lead().show(job_id).summary.state == "aborted"
    never.set()


def test_a_directory_has_one_server(federation: Federation) -> None:
    with pytest.raises(RunExists, match="is served by another process"):
        Federation(federation.directory)


def test_jobs_that_this_version_cannot_read_fail_and_hold_up_no_other(federation_in: Start, tmp_path: Path) -> None:
    federation = federation_in()
    lead, pack = federation.lead(), packed(write_job(tmp_path / "small"))
    ids = [lead.submit(pack) for _ in range(3)]
    federation.server.close()
    with JobDatabase(federation.directory / "federation.sqlite") as database:
        database.start(1)
        database._connection.execute("UPDATE jobs SET contract = '{}' WHERE number < 3")
    federation.start()
    for name in ("north", "south"):
        federation.agent(name)
    lead = federation.lead()
    assert [lead.wait(job_id).state for job_id in ids[2:]] == ["done"]
    for job in lead.ask(ListJobs(states=["failed"]), JobList)[0].jobs:
        assert job.reason.startswith("the job cannot be read by this version of flcore: small-")
    assert len(lead.ask(ListJobs(states=["failed"]), JobList)[0].jobs) == 2
