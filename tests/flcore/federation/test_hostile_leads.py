"""What a lead sends stops no other job: changes and contracts without an end, and jobs that cannot start."""

import json
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from flcore_transport.control import MAX_MESSAGE_BYTES

from flcore import Job
from flcore.errors import JobError, RecordError
from flcore.federation import requests
from flcore.federation.job_database import JobDatabase
from flcore.federation.job_offers import MAX_OFFER_BYTES, require_offer
from flcore.federation.job_rows import NewJob
from flcore.federation.job_runner import JobRunner
from flcore.federation.messages import (
    CloneJob,
    FilePart,
    JobList,
    JobQueued,
    ListJobs,
    LogPart,
    ReadFile,
    ReadLog,
    SubmitJob,
)
from tests.flcore.federation.small_federation import Federation, packed, refused, write_job

Start = Callable[..., Federation]


def job_with_keys(directory: Path, count: int) -> Job:
    """A job with hyperparameters k0, k1 and so on, which may be changed."""
    write_job(directory)
    path = directory / "job.toml"
    keys = ", ".join(f'k{index} = "x"' for index in range(count))
    path.write_text(path.read_text().replace("[client]", f"[client]\nhyperparameters = {{ {keys} }}"))
    return Job.load(directory)


def changes_of(first: int, stop: int, value: str = "y") -> dict[str, Any]:
    """New values of some of the keys."""
    return {f"client.hyperparameters.k{index}": value for index in range(first, stop)}


def test_a_clone_with_more_changes_than_an_offer_takes_is_refused(federation: Federation, tmp_path: Path) -> None:
    lead = federation.person("alice")
    pack = packed(job_with_keys(tmp_path / "small", 140))
    digest = lead.put(pack)
    first = lead.ask(SubmitJob(digest=digest, changes=changes_of(0, 64)), JobQueued)[0].id
    with refused("bad-job", "expected at most 64 changed keys, those of the cloned job included, got 128"):
        lead.ask(CloneJob(id=first, changes=changes_of(64, 128)), JobQueued)
    assert lead.ask(CloneJob(id=first, changes=changes_of(0, 64, "z")), JobQueued)[0].id == "small-2"


def test_a_row_that_cannot_be_offered_fails_its_job_and_no_start_of_the_server(
    federation_in: Start, tmp_path: Path
) -> None:
    federation = federation_in()
    lead, pack = federation.lead(), packed(job_with_keys(tmp_path / "small", 140))
    ids = [lead.submit(pack) for _ in range(3)]
    federation.server.close()
    with JobDatabase(federation.directory / "federation.sqlite") as database:  # as an earlier version queued them
        database.start(1)
        database._connection.execute("UPDATE jobs SET changes = ? WHERE number < 3", (json.dumps(changes_of(0, 128)),))
    federation.start()
    lead = federation.lead()
    federation.agent("north")
    lead.wait_for(ids[2], lambda found: "1 of the 2" in found.summary.reason)
    federation.agent("south")  # the last change: one pass sees both jobs that wait
    assert [lead.wait(job_id).state for job_id in ids] == ["failed", "failed", "done"]
    assert "expected at most 64 changed keys" in lead.show(ids[1]).summary.reason


def test_a_job_whose_start_raises_fails_and_gives_its_slot_back(
    federation: Federation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = JobRunner.start

    def fail_first(runner: JobRunner) -> None:
        if runner.row.number == 1:
            raise RuntimeError("can't start new thread")
        start(runner)

    monkeypatch.setattr(JobRunner, "start", fail_first)
    lead, pack = federation.lead(), packed(write_job(tmp_path / "small"))
    ids = [lead.submit(pack) for _ in range(2)]
    federation.agent("north")
    lead.wait_for(ids[1], lambda found: "1 of the 2" in found.summary.reason)
    federation.agent("south")  # the last change: one pass sees both jobs
    assert [lead.wait(job_id).state for job_id in ids] == ["failed", "done"]
    assert lead.show(ids[0]).summary.reason.startswith("the job cannot be started: RuntimeError")


def test_a_job_whose_start_the_database_could_not_record_is_offered_by_a_later_pass(
    federation: Federation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find, failures = JobDatabase.find_number, list[int]()

    def fail_once(database: JobDatabase, number: int) -> Any:
        row = find(database, number)
        if row is not None and row.state == "running" and not failures:
            failures.append(number)
            raise RecordError("disk")
        return row

    monkeypatch.setattr(JobDatabase, "find_number", fail_once)
    lead = federation.lead()
    job_id = lead.submit(packed(write_job(tmp_path / "small")))
    for name in ("north", "south"):
        federation.agent(name)
    lead.wait_for(job_id, lambda found: bool(failures))
    federation.server._scheduler.wake()
    assert lead.wait(job_id).state == "done"


def test_clones_cannot_add_up_to_an_offer_that_no_message_carries(federation: Federation, tmp_path: Path) -> None:
    lead = federation.person("alice")
    job_id = lead.submit(packed(job_with_keys(tmp_path / "small", 20)), **{"client.hyperparameters.k0": "é" * 5_000})
    with refused("bad-job", "expected a value of all changes together of at most 64KiB"):
        for index in range(1, 20):
            changes = changes_of(index, index + 1, "é" * 5_000)
            job_id = lead.ask(CloneJob(id=job_id, changes=changes), JobQueued)[0].id
    assert job_id == "small-2"


def test_a_contract_whose_join_would_not_be_read_is_refused() -> None:
    digest = "0" * 64
    fits = NewJob("small", "alice", "lead/alice", digest, 1, "", "x" * (950 << 10), digest, digest, {}, 1)
    require_offer(fits)
    with pytest.raises(JobError, match=r"expected a contract with its changes of at most 960KiB .*, got 970KiB"):
        require_offer(replace(fits, contract="x" * (970 << 10)))
    assert MAX_OFFER_BYTES < MAX_MESSAGE_BYTES


def test_numbers_that_the_database_cannot_hold_are_refused(federation: Federation, tmp_path: Path) -> None:
    lead, pack = federation.person("alice"), packed(write_job(tmp_path / "small"))
    with refused("bad-job", "server.rounds: expected at most 1,000,000,000, got"):
        lead.submit(pack, server__rounds=2**63)
    job_id = lead.submit(pack)
    for offset in (2**63, 10**30):
        with refused("malformed"):
            lead.ask(ReadFile.model_construct(do="read-file", id=job_id, name="run.json", offset=offset), FilePart)
        with refused("malformed"):
            lead.ask(ReadLog.model_construct(do="read-log", id=job_id, client="", offset=offset, wait=False), LogPart)


def test_the_queue_has_a_limit_for_each_lead_and_one_for_all(
    federation: Federation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(requests, "MAX_QUEUED_PER_LEAD", 2)
    monkeypatch.setattr(requests, "MAX_QUEUED", 4)
    pack = packed(write_job(tmp_path / "small"))
    alice, bob, admin = federation.person("alice"), federation.person("bob"), federation.person("root", "admin")
    first, second = (alice.submit(pack) for _ in range(2))
    with refused("busy", "expected at most 2 queued jobs of one lead"):
        alice.submit(pack)
    with refused("busy", "of one lead"):
        alice.ask(CloneJob(id=first), JobQueued)
    alice.abort(first)
    alice.submit(pack)
    bob.submit(pack)
    admin.submit(pack)
    with refused("busy", "expected at most 4 queued jobs with contracts of 64MiB"):
        admin.submit(pack)
    alice.abort(second)
    monkeypatch.setattr(requests, "MAX_QUEUED_BYTES", 1_000)
    with refused("busy"):
        admin.submit(pack)


def test_a_list_reads_no_contract(federation: Federation, tmp_path: Path) -> None:
    lead, database = federation.lead(), federation.server._requests._database
    lead.submit(packed(write_job(tmp_path / "small")))
    row = database.find("small-1")
    assert row is not None
    job = replace(
        NewJob(**{name: getattr(row, name) for name in NewJob.__dataclass_fields__}), contract="x" * (1 << 20)
    )
    for _ in range(30):
        database.add(job)
    tracemalloc.start()
    try:
        assert len(lead.ask(ListJobs(limit=1000), JobList)[0].jobs) == 31
        assert tracemalloc.get_traced_memory()[1] < 10 << 20
    finally:
        tracemalloc.stop()
