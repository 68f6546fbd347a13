"""Who may do what, what is refused and why, and that lists stay fast."""

import json
import time
from concurrent.futures import Future
from contextlib import closing
from pathlib import Path

import pytest
from flcore_transport import Ask, GrpcConnection

from flcore.federation.job_rows import NewJob
from flcore.federation.messages import (
    AbortJob,
    CloneJob,
    DeleteJob,
    Done,
    FileList,
    JobDetails,
    JobList,
    JobQueued,
    JobSummary,
    ListFiles,
    ListJobs,
    LogPart,
    Ping,
    Pong,
    PutPack,
    ReadLog,
    ShowJob,
    SiteLog,
    SiteProgress,
    SiteProgressReport,
    SubmitJob,
    WaitForJob,
)
from flcore.identity.lead_keys import SigningKey
from flcore.job.pack import pack_job
from flcore.lead.server_calls import ServerCalls
from flcore.lead.submitted_job import SubmittedJob
from tests.flcore.federation.small_federation import Agent, Federation, packed, refused, write_job

UNKNOWN = "small-99"


@pytest.fixture
def pack(tmp_path: Path) -> bytes:
    return packed(write_job(tmp_path / "small"))


def test_a_lead_sees_all_jobs_and_handles_its_own(federation: Federation, pack: bytes) -> None:
    alice, bob, admin = federation.person("alice"), federation.person("bob"), federation.person("root", "admin")
    job_id = alice.submit(pack, server__rounds=3)
    assert [job.lead for job in bob.ask(ListJobs(), JobList)[0].jobs] == ["alice"]
    seen = bob.show(job_id)
    assert seen.summary.id == job_id and (seen.changes, seen.sites, seen.metrics) == ({}, {}, {})
    assert bob.ask(WaitForJob(id=job_id, state="running"), JobSummary)[0].state == "queued"
    for request in (
        AbortJob(id=job_id),
        DeleteJob(id=job_id),
        ReadLog(id=job_id),
        ListFiles(id=job_id),
        CloneJob(id=job_id),
    ):
        with refused("not-allowed", "small-1 is a job of alice; expected one of bob's own, or the role admin"):
            bob.ask(request, Done)
    assert admin.show(job_id).changes == {"server.rounds": 3}
    admin.ask(ReadLog(id=job_id), LogPart)
    admin.abort(job_id)
    assert alice.show(job_id).summary.reason == "aborted by root"
    alice.ask(DeleteJob(id=job_id), Done)


def test_a_site_of_the_same_name_is_somebody_else(federation: Federation, pack: bytes) -> None:
    (federation.directory / "roles.toml").write_text('[client]\nalice = "lead"\n')
    job_id = federation.person("alice").submit(pack)
    with refused("not-allowed", "is a job of alice"):
        federation.person("alice", "client").abort(job_id)


def test_sites_may_not_submit_and_leads_may_not_report(federation: Federation, pack: bytes) -> None:
    site, lead = federation.person("north", "client"), federation.person("alice")
    with refused(
        "not-allowed", "flcore list: expected the role lead or admin, got north with the role client; use another kit"
    ):
        site.ask(ListJobs(), JobList)
    job_id = lead.submit(pack)
    with refused(
        "not-allowed", "sending the log of a job: expected a site, with the role client, got alice with the role lead"
    ):
        lead.ask(SiteLog(id=job_id), Done, b"line")


def test_the_table_of_roles_overrides_at_once(federation: Federation, pack: bytes) -> None:
    alice, north = federation.person("alice"), federation.person("north", "client")
    job_id = alice.submit(pack)
    table = federation.directory / "roles.toml"
    table.write_text('[lead]\nalice = "none"\n[client]\nnorth = "admin"\n')
    with refused("not-allowed", "with the role none"):
        alice.show(job_id)
    north.abort(job_id)
    table.write_text("[lead")
    with refused("roles", "nobody has a role"):
        north.show(job_id)


def test_an_id_that_does_not_exist_is_one_clear_error(federation: Federation) -> None:
    lead = federation.person("alice")
    for request in (
        ShowJob(id=UNKNOWN),
        AbortJob(id=UNKNOWN),
        DeleteJob(id=UNKNOWN),
        ReadLog(id=UNKNOWN, wait=True),
        ListFiles(id=UNKNOWN),
        CloneJob(id=UNKNOWN),
        WaitForJob(id=UNKNOWN, state="queued"),
    ):
        with refused("no-such-id", f"expected the id of a job, got '{UNKNOWN}'"):
            lead.ask(request, Done)


def test_a_malformed_request_is_refused_and_in_the_audit_log(federation: Federation) -> None:
    for content in (b"", b"[]", b'{"request": {"do": "rm"}}', b'{"request": {"do": "list", "limit": 100000}}'):
        with refused("malformed"):
            federation.person("alice").send(Ask(content))
    assert (federation.directory / "audit.jsonl").read_text().count('"kind":"malformed"') == 4


def test_a_delete_of_a_job_that_waits_is_refused(federation: Federation, pack: bytes) -> None:
    lead = federation.person("alice")
    job_id = lead.submit(pack)
    with refused("not-over", "abort it first"):
        lead.ask(DeleteJob(id=job_id), Done)


def test_a_submission_that_cannot_run_is_refused_with_the_reason(federation: Federation, tmp_path: Path) -> None:
    lead = federation.person("alice")
    good = packed(write_job(tmp_path / "good"))
    with refused("no-pack", "send it first"):
        lead.ask(SubmitJob(digest="0" * 64), JobQueued)
    with refused("bad-pack"):
        lead.submit(b"no pack at all" * 1000)
    with refused("bad-pack"):
        lead.submit(good[:-100] + bytes(100))
    with refused("bad-job", "server.round: expected a key of the job's contract"):
        lead.submit(good, server__round=3)
    with refused("bad-job", "server.rounds"):
        lead.submit(good, server__rounds=0)
    with refused("bad-job", "start it with --connections"):
        lead.submit(packed(write_job(tmp_path / "many", clients="5000")))
    with refused("bad-job", "expected a bundled workflow"):
        lead.submit(packed(write_job(tmp_path / "odd", workflow="fed_magic")))
    with refused("too-large", "expected a pack of at most 64MiB"):
        lead.ask(PutPack(digest="0" * 64, nbytes=1 << 40, offset=0), Done)
    assert lead.ask(ListJobs(), JobList)[0].jobs == []
    assert lead.submit(good) == "small-1", "nothing else was queued"


def test_a_signed_pack_names_its_signer(federation: Federation, tmp_path: Path) -> None:
    job, key = write_job(tmp_path / "small"), SigningKey.create("alice")
    pack = pack_job(job, tmp_path / "signed.flpack", key).path.read_bytes()
    lead = federation.person("alice")
    assert lead.show(lead.submit(pack)).signer == "alice"


def test_a_site_reports_its_log_and_its_progress(federation: Federation, pack: bytes) -> None:
    lead, north, east = (
        federation.person("alice"),
        federation.person("north", "client"),
        federation.person("east", "client"),
    )
    job_id = lead.submit(pack)
    north.ask(SiteLog(id=job_id), Done, b"ValueError: no data\n")
    assert lead.ask(ReadLog(id=job_id, client="north"), LogPart)[1] == b"ValueError: no data\n"
    assert [file.name for file in lead.ask(ListFiles(id=job_id), FileList)[0].files] == ["sites/north.log"]
    with refused("not-allowed", "expected a client of small-1, got 'east'"):
        east.ask(SiteLog(id=job_id), Done, b"x")
    with refused("not-allowed"):
        north.ask(SiteLog(id=job_id, client="south"), Done, b"x")
    with refused("no-such-file", "expected a client of small-1, got '../server'"):
        lead.ask(ReadLog(id=job_id, client="../server"), LogPart)
    progress = SiteProgress(task="train", round=1, done=3, total=10)
    north.ask(SiteProgressReport(id=job_id, progress=progress), Done)  # it does not run: nothing to show
    assert lead.show(job_id).progress == {}


def test_over_plaintext_a_report_names_its_site(federation: Federation, pack: bytes) -> None:
    lead = federation.lead()
    job_id = lead.submit(pack)
    lead.ask(SiteLog(id=job_id, client="south"), Done, b"line\n")
    assert lead.ask(ReadLog(id=job_id, client="south"), LogPart)[1] == b"line\n"


def test_a_log_that_is_waited_for_wakes_with_its_next_line(federation: Federation, pack: bytes) -> None:
    lead, north = federation.lead(), federation.person("north", "client")
    job_id = lead.submit(pack)
    content = json.dumps({"request": ReadLog(id=job_id, client="north", wait=True).model_dump()}).encode()
    waiting = federation.server._answer(None, Ask(content))
    assert isinstance(waiting, Future)
    north.ask(SiteLog(id=job_id), Done, b"line\n")
    assert waiting.result(5).body == b"line\n"


def test_two_hundred_queued_and_a_thousand_past_jobs_keep_every_command_fast(
    federation: Federation, pack: bytes
) -> None:
    lead = federation.lead()
    first = lead.submit(pack)
    database = federation.server._requests._database
    row = database.find(first)
    assert row is not None
    database._connection.execute("PRAGMA synchronous=OFF")  # of the test's 1,200 commits
    job = NewJob(**{name: getattr(row, name) for name in NewJob.__dataclass_fields__})
    for number in range(2, 1201):
        database.add(job)
        if number <= 1001:
            database.end(number, "done", "", 2, {"accuracy": 0.5})
    federation.server._scheduler.wake()
    lead.wait_for("small-1200", lambda found: "never joined" in found.summary.reason)
    for request, reply in (
        (ListJobs(limit=1000), JobList),
        (ListJobs(states=["queued"], limit=200), JobList),
        (ShowJob(id="small-1200"), JobDetails),
        (AbortJob(id="small-1199"), Done),
        (CloneJob(id="small-500", changes={"server.rounds": 1}), JobQueued),
        (DeleteJob(id="small-400"), Done),
    ):
        began = time.process_time()  # not the wall's time: the machine may be busy
        lead.ask(request, reply)
        assert time.process_time() - began < 0.3, request
    assert len(lead.ask(ListJobs(states=["queued"], limit=200), JobList)[0].jobs) == 200


def test_replies_about_a_large_job_fit_into_their_messages(federation: Federation, tmp_path: Path) -> None:
    sites = [f"hospital-number-{index:04}" for index in range(600)]
    job = write_job(tmp_path / "small", clients=json.dumps(sites), quorum=1)
    lead = federation.lead()
    federation.agents.append(Agent(federation.server.address, sites[0], refuse=lambda _: "no"))
    job_id = lead.submit(packed(job))
    lead.wait_for(job_id, lambda found: found.sites.get(sites[0]) == "refused: no")
    run = federation.directory / "jobs" / job_id / "run"
    lead.wait_for(job_id, lambda _: (run / "run.json").exists())
    for number in range(5_200):
        (run / f"round-{number}.safetensors").touch()
    for site in sites[1:]:
        federation.server._scheduler._database.refuse(1, site, "because " * 120)
    shown = lead.show(job_id)
    assert list(shown.sites) == sites, "each site is there, with the beginning of its reason"
    assert shown.sites[sites[5]].startswith("refused: because")
    with closing(ServerCalls(GrpcConnection(federation.server.address))) as calls:
        files = SubmittedJob(calls, job_id).files()
    assert len({file.name for file in files}) == len(files) >= 5_200


def test_a_task_name_in_progress_is_bounded(federation: Federation, pack: bytes) -> None:
    job_id = federation.person("alice").submit(pack)
    progress = SiteProgress.model_construct(task="t" * 65, round=1, done=3.0, total=10.0)
    with refused("malformed", "task"):
        federation.person("north", "client").ask(
            SiteProgressReport.model_construct(do="site-progress", id=job_id, client="", progress=progress), Done
        )


def test_each_member_may_ping_and_is_told_the_time(federation: Federation) -> None:
    for person in (
        federation.person("alice"),
        federation.person("north", "client"),
        federation.person("root", "admin"),
    ):
        told, body = person.ask(Ping(nbytes=10), Pong, bytes(1_000))
        assert abs(told.time_s - time.time()) < 60 and body == bytes(10)
    (federation.directory / "roles.toml").write_text('[lead]\nalice = "none"\n')
    with refused("not-allowed", "flcore doctor: expected the role client, lead or admin, got alice with the role none"):
        federation.person("alice").ask(Ping(), Pong)
