"""What the server tells of a job: while it starts, after each round, and at its end."""

import errno
import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import flcore
from flcore import Arrays, Job, Task, Update
from flcore.aggregation.budget import Budget
from flcore.federation.messages import CloneJob, JobList, JobQueued, ListJobs, LogPart, ReadLog, SubmitJob
from flcore.lead.job_sheet import sheet_lines
from tests.flcore.command import said
from tests.flcore.conftest import adding
from tests.flcore.federation.small_federation import ADD_ONE, Federation, Lead, packed, write_job
from tests.flcore.server.failing_disk import FailingDisk, Fault

Start = Callable[..., Federation]

STOPPING = """
def run(control):
    for number in control.rounds():
        model = control.train(control.last_model, control.sample()).aggregate()
        control.publish(model, {"loss": 1 / number})
"""


def log_of(lead: Lead, job_id: str) -> str:
    return lead.ask(ReadLog(id=job_id), LogPart)[1].decode()


def submitted(federation: Federation, directory: Path, **changes: Any) -> tuple[Lead, str]:
    """Submit a job whose workflow publishes a loss, to two sites that are there."""
    lead = federation.lead()
    job = write_job(directory, workflow="flow.py:run", rounds=3, flow=STOPPING)
    with (directory / "job.toml").open("a") as contract:
        contract.write('[tasks.validate]\nreturns = "metrics"\n')  # for server.best; the workflow runs no such task
    job_id = lead.submit(packed(Job.load(job.directory)), **changes)
    federation.agent("north")
    federation.agent("south")
    return lead, job_id


def test_a_job_that_stops_early_says_after_which_round_and_why(federation: Federation, tmp_path: Path) -> None:
    lead, job_id = submitted(federation, tmp_path / "job", server__best="loss:min", server__target="loss:0.5")
    found = lead.wait(job_id)
    assert (found.state, found.round, found.rounds) == ("done", 2, 3)
    assert found.reason.startswith("stopped early after round 2: loss 0.5 has reached the target 0.5")
    assert lead.show(job_id).summary.reason == found.reason
    assert f"\ndone: {found.reason} [" in log_of(lead, job_id)


def test_the_log_of_a_job_begins_with_the_start_of_its_sites(federation: Federation, tmp_path: Path) -> None:
    lead, job_id = submitted(federation, tmp_path / "job")
    assert lead.wait(job_id).state == "done"
    log = log_of(lead, job_id)
    run, first, *_ = log.splitlines()
    assert run.startswith("run ")
    assert first.startswith("offered to the sites, which start their processes of the job; it begins when 2 have")
    assert "waiting for clients" not in log and log.count("which start their processes") == 1


def test_each_round_is_told_with_its_metrics_to_the_lead_alone(federation: Federation, tmp_path: Path) -> None:
    alice, bob = federation.person("alice"), federation.person("bob")
    job_id = alice.submit(packed(write_job(tmp_path / "job", rounds=1)))
    federation.agent("north", adding(2.0))
    federation.agent("south", adding(1.0))
    assert alice.wait(job_id).metrics == {"added": 1.5}, "of training, as the job has no validation"
    assert alice.show(job_id).metrics == alice.show(job_id).summary.metrics == {"added": 1.5}
    assert bob.wait(job_id).metrics == {} == bob.show(job_id).summary.metrics
    assert alice.ask(ListJobs(), JobList)[0].jobs[0].metrics == {}


def test_more_metrics_than_a_summary_takes_are_left_out(federation: Federation, tmp_path: Path) -> None:
    def train(model: Arrays, task: Task) -> Update:
        return Update(ADD_ONE(model, task).arrays, weight=1.0, metrics={f"{n:03d}" * 30: 1.0 for n in range(200)})

    lead = federation.lead()
    job_id = lead.submit(packed(write_job(tmp_path / "job", clients='["north"]', quorum=1, rounds=1)))
    federation.agent("north", train)
    assert 10 < len(lead.wait(job_id).metrics) < 50 and len(lead.show(job_id).metrics) == 200


def test_a_submission_names_the_clients_that_are_no_members_and_is_queued(
    federation: Federation, tmp_path: Path
) -> None:
    lead = federation.lead()
    federation.agent("north")
    (federation.directory / "roles.toml").write_text('[client]\nsouth = "none"\n')
    digest = lead.put(packed(write_job(tmp_path / "job", clients='["north", "nroth", "south", "eats"]', quorum=3)))
    first = lead.ask(SubmitJob(digest=digest), JobQueued)[0].id
    lead.wait_for(first, lambda found: found.summary.reason.startswith("waits for clients: 1 of the 3"))
    reply = lead.ask(SubmitJob(digest=digest), JobQueued)[0]
    assert reply.warnings == [
        (
            "2 of 4 clients have never joined this federation: eats, nroth; a round needs 3: see clients and quorum in "
            "job.toml"
        ),
        "1 of 4 clients has the role none: south; a round needs 3: see clients and quorum in job.toml",
    ]
    assert lead.show(reply.id).summary.state == "queued"
    changes: dict[str, Any] = {"clients": ["north"], "server.quorum": 1}
    assert lead.ask(CloneJob(id=reply.id, changes=changes), JobQueued)[0].warnings == []


def failing(model: Arrays, task: Task) -> Update:
    if task.round == 2:
        raise ValueError("no data today")
    return ADD_ONE(model, task)


def test_a_job_that_is_over_shows_what_each_site_has_done(federation: Federation, tmp_path: Path) -> None:
    lead = federation.lead()
    clients = '["north", "south", "east", "west"]'
    skipped: dict[str, Any] = {"server__on_quorum_failure": "skip", "server__quorum_retries": 0}
    job_id = lead.submit(packed(write_job(tmp_path / "job", clients=clients, quorum=2, rounds=2)), **skipped)
    federation.agent("east", refuse=lambda _: "not at night")
    federation.agent("south", failing)
    federation.agent("north")
    assert lead.wait(job_id).state == "done"
    details = lead.show(job_id)
    assert details.sites.keys() == {"north", "south", "east", "west"}
    assert details.sites["north"] == "took part" and details.sites["west"] == "took no part"
    assert details.sites["east"] == "refused: not at night"
    assert details.answered == {"north": 2, "south": 1} and details.more_sites == 0
    assert details.sites["south"].startswith("took part; failed last: train: ")
    assert federation.person("bob").show(job_id).sites == {}


def test_the_rounds_that_sites_answered_before_a_restart_count_and_an_abort_keeps_them(
    federation: Federation, tmp_path: Path
) -> None:
    may_go_on = threading.Event()

    def train(model: Arrays, task: Task) -> Update:
        if task.round == 3:
            may_go_on.wait(30)
        return ADD_ONE(model, task)

    lead = federation.lead()
    job_id = lead.submit(packed(write_job(tmp_path / "job", rounds=50)))
    for name in ("north", "south"):
        federation.agent(name, train)
    lead.wait_for(job_id, lambda found: found.answered == {"north": 2, "south": 2})
    federation.server.close()
    federation.start()
    lead = federation.lead()
    lead.wait_for(job_id, lambda found: found.answered == {"north": 2, "south": 2})
    may_go_on.set()
    lead.wait_for(job_id, lambda found: found.summary.round >= 3)
    lead.abort(job_id)
    details = lead.wait_for(job_id, lambda found: set(found.sites.values()) == {"took part"})
    assert details.summary.state == "aborted" and details.answered.keys() == {"north", "south"}
    assert min(details.answered.values()) >= 3


def test_all_of_many_sites_are_there_page_by_page(federation_in: Start, tmp_path: Path) -> None:
    federation = federation_in(budget=Budget(256 << 20, connections=4_000))
    names = [f"site-{number:04d}-{'x' * 40}" for number in range(1_500)]
    admin = federation.lead()
    job_id = admin.submit(packed(write_job(tmp_path / "job", clients=json.dumps(names), quorum=1)))
    refusing = federation.agent(names[700], refuse=lambda _: "not at night")
    admin.wait_for(job_id, lambda found: found.summary.state == "running" and refusing.offers != [])
    first = admin.show(job_id)
    assert 500 < len(first.sites) < 1_500 and len(first.sites) + first.more_sites == 1_500
    assert list(first.sites) == names[: len(first.sites)]
    with flcore.connect(server=federation.server.address, insecure=True) as connection:
        job = connection.job(job_id)
        while not (details := job.details).sites[names[700]].startswith("refused: not at"):
            time.sleep(0.05)
        job.abort()
        assert list(job.details.sites) == names and details.more_sites == 0 and list(details.sites) == names
    lines = list(sheet_lines(details))
    assert lines[-1].strip() == "and 500 more sites (--json)" and names[999] in lines[-2]
    shown = json.loads(
        said("show", job_id, "--json", "--server", federation.server.address, "--insecure", cwd=tmp_path)
    )
    assert list(shown["sites"]) == names


def test_a_job_that_runs_shows_why_a_site_is_left_out(federation: Federation, tmp_path: Path) -> None:
    gate = threading.Event()

    def waiting(model: Arrays, task: Task) -> Update:
        assert gate.wait(60.0)
        return ADD_ONE(model, task)

    def broken(model: Arrays, task: Task) -> Update:
        raise ValueError("no data today")

    lead = federation.lead()
    job_id = lead.submit(
        packed(write_job(tmp_path / "job", clients='["north", "south"]')), server__on_quorum_failure="skip"
    )
    federation.agent("north", waiting)
    federation.agent("south", broken)
    try:
        found = lead.wait_for(job_id, lambda found: "failed last" in found.sites.get("south", ""))
        assert found.summary.state == "running"
        assert found.sites["south"] == "joined; failed last: train: task 'train' raised ValueError: no data today"
    finally:
        gate.set()
    lead.wait(job_id)


def test_other_leads_read_no_reason_that_quotes_a_site(federation: Federation, tmp_path: Path) -> None:
    def broken(model: Arrays, task: Task) -> Update:
        raise ValueError("no data today")

    alice, bob = federation.person("alice"), federation.person("bob")
    job = packed(write_job(tmp_path / "job", clients='["secret-clinic", "other"]', quorum=1))
    job_id = alice.submit(job, server__on_quorum_failure="fail", server__quorum_retries=0)
    waits = alice.wait_for(job_id, lambda found: "secret-clinic" in found.summary.reason).summary.reason
    told = bob.show(job_id).summary.reason
    assert told and waits.startswith(f"{told}; not there: ")
    federation.agent("secret-clinic", broken)
    assert "secret-clinic: task 'train' raised ValueError: no data today" in alice.wait(job_id).reason
    [listed] = bob.ask(ListJobs(), JobList)[0].jobs
    for summary in (bob.wait(job_id), bob.show(job_id).summary, listed):
        assert (summary.state, summary.reason) == ("failed", "its lead and the admins can read why")


def test_an_interrupted_job_is_told_as_such_and_goes_on_later(
    federation: Federation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = FailingDisk(monkeypatch)
    disk.fault = Fault("write", r"small-\d+/run/history\.jsonl", errno.ENOSPC, skip=1)
    alice, bob = federation.person("alice"), federation.person("bob")
    job_id = alice.submit(packed(write_job(tmp_path / "small", rounds=3)))
    for site in ("north", "south"):
        federation.agent(site)
    found = alice.wait_for(job_id, lambda found: found.summary.state == "interrupted")
    assert (found.summary.round, found.summary.rounds) == (1, 3)
    assert found.summary.reason.startswith("history.jsonl: No space left on device; free space there")
    assert found.summary.metrics == {"added": 1.0} and set(found.sites.values()) == {"took part"}
    told = bob.show(job_id).summary
    assert (told.state, told.reason) == ("interrupted", "its lead and the admins can read why")
