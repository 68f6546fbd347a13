"""A standing federation at work: jobs are submitted, wait, run side by side, are refused, aborted and deleted."""

import errno
import gc
import re
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from flcore_transport import GrpcConnection, Join

from flcore import Arrays, Task, Update
from flcore.aggregation.budget import Budget
from flcore.federation import model_trial
from flcore.federation.lobby_messages import JobOffer
from flcore.federation.members import MembersOnly
from flcore.federation.messages import (
    CloneJob,
    DeleteJob,
    Done,
    FileList,
    FilePart,
    JobList,
    JobQueued,
    ListFiles,
    ListJobs,
    LogPart,
    ReadFile,
    ReadLog,
    SubmitJob,
)
from flcore.federation.roles import Roles
from flcore.job.messages import AgentJoinContent
from flcore.server.audit_chain import verify
from tests.flcore.conftest import adding
from tests.flcore.federation.small_federation import ADD_ONE, Federation, Lead, model_of, packed, refused, write_job

Start = Callable[..., Federation]


def test_a_job_runs_from_its_pack_to_its_model(federation: Federation, tmp_path: Path) -> None:
    pack = packed(write_job(tmp_path / "small"))
    lead, agents = federation.lead(), [federation.agent("north"), federation.agent("south")]
    job_id = lead.submit(pack, server__rounds=3)
    assert job_id == "small-1"
    summary = lead.wait(job_id)
    assert (summary.state, summary.reason, summary.round, summary.rounds) == ("done", "", 3, 3)
    assert np.all(model_of(federation.directory, job_id) == 3.0)
    assert [agent.packs[job_id] for agent in agents] == [pack, pack]
    details = lead.show(job_id)
    assert details.changes == {"server.rounds": 3} and details.summary.lead == "local"
    files = {file.name: file.nbytes for file in lead.ask(ListFiles(id=job_id), FileList)[0].files}
    assert {"run/model.safetensors", "run/history.jsonl", "run/audit.jsonl", "server.log"} <= files.keys()
    assert not [name for name in files if "state" in name or "lock" in name or "/." in name]
    part, body = lead.ask(ReadFile(id=job_id, name="run/history.jsonl", offset=0), FilePart)
    assert part.nbytes == files["run/history.jsonl"] == len(body) and len(part.sha256) == 64
    assert body.count(b"\n") == 3
    part, body = lead.ask(ReadFile(id=job_id, name="run/history.jsonl", offset=len(body)), FilePart)
    assert body == b"" and len(part.sha256) == 64
    with refused("no-such-file"):
        lead.ask(ReadFile(id=job_id, name="../../federation.sqlite", offset=0), FilePart)
    part_of_log, log = lead.ask(ReadLog(id=job_id), LogPart)
    assert part_of_log.is_over and b"round 3/3" in log and log.rstrip().splitlines()[-1].startswith(b"done")


@pytest.mark.serial
def test_the_first_task_of_a_job_is_at_waiting_clients_within_a_second(federation: Federation, tmp_path: Path) -> None:
    pack = packed(write_job(tmp_path / "small", rounds=1))
    lead, agents = federation.lead(), [federation.agent("north"), federation.agent("south")]
    assert all(agent.all_offered.wait(10) for agent in agents)
    waited: list[float] = []
    while len(waited) < 5 and min(waited, default=9.0) >= 1.0:  # more than once if the machine is busy
        began, count = time.monotonic(), len(agents[0].started)
        lead.wait(lead.submit(pack))
        waited.append(max(agent.started[count] - began for agent in agents))
    assert min(waited) < 1.0


def test_twenty_jobs_at_once_end_one_after_the_other(federation_in: Start, tmp_path: Path) -> None:
    federation = federation_in(slots=2)
    pack = packed(write_job(tmp_path / "small", rounds=1))
    lead = federation.lead()
    federation.agent("north", adding(1.0))
    federation.agent("south", adding(3.0))
    ids = [lead.submit(pack) for _ in range(20)]
    assert ids == [f"small-{number}" for number in range(1, 21)]
    assert {lead.wait(job_id).state for job_id in ids} == {"done"}
    for job_id in ids:
        assert np.all(model_of(federation.directory, job_id) == 2.0)
    starts = [job.started for job in reversed(lead.ask(ListJobs(), JobList)[0].jobs)]
    assert starts == sorted(starts), "first come, first served"


def test_two_jobs_run_side_by_side_within_their_shares(federation_in: Start, tmp_path: Path) -> None:
    federation = federation_in(slots=2)
    assert federation.settings.share.nbytes == 128 << 20
    both, meeting = threading.Event(), threading.Barrier(4)

    def together(model: Arrays, task: Task) -> Update:
        meeting.wait(20)  # only if both jobs train at the same time
        both.set()
        return adding(1.0)(model, task)

    pack, lead = packed(write_job(tmp_path / "small", rounds=1)), federation.lead()
    for name in ("north", "south"):
        federation.agent(name, together)
    ids = [lead.submit(pack) for _ in range(3)]
    lead.wait_for(ids[1], lambda details: details.summary.state == "running")
    third = lead.show(ids[2]).summary
    assert third.state == "running" or third.reason == "waits for a slot: 2 of 2 jobs run"
    assert [lead.wait(job_id).state for job_id in ids[:2]] == ["done", "done"] and both.is_set()
    lead.abort(ids[2])


def test_two_jobs_with_modules_of_the_same_names_do_not_meet(federation_in: Start, tmp_path: Path) -> None:
    federation = federation_in(slots=2)
    lead = federation.lead()
    for name in ("north", "south"):
        federation.agent(name)
    workflow = (
        "import helper, threading\nfrom flcore.workflows.fed_avg import fed_avg\n"
        "def run(control):\n    import helper as again\n    assert again is helper\n"
        "    fed_avg(control)\n    arrays = {'w': control.initial_model.arrays()['w'] + helper.VALUE}\n"
        "    control.publish(control.model_of(arrays), {})\n"
    )
    ids = []
    for value in (11, 22):
        job = write_job(
            tmp_path / str(value),
            workflow="flow.py:run",
            flow=workflow,
            helper=f"import numpy as np\nVALUE = np.float32({value})\n",
        )
        ids.append(lead.submit(packed(job)))
    assert [lead.wait(job_id).state for job_id in ids] == ["done", "done"], [lead.show(each) for each in ids]
    assert [float(model_of(federation.directory, job_id)[0, 0]) for job_id in ids] == [11.0, 22.0]


def test_the_queue_says_what_a_job_waits_for(federation: Federation, tmp_path: Path) -> None:
    pack, lead = packed(write_job(tmp_path / "small")), federation.lead()
    job_id = lead.submit(pack)
    lead.wait_for(job_id, lambda found: "south has never joined" in found.summary.reason)
    federation.agent("north")
    found = lead.wait_for(job_id, lambda found: "1 of the 2" in found.summary.reason)
    assert found.summary.state == "queued" and found.summary.reason.endswith("not there: south has never joined")
    federation.agent("south")
    assert lead.wait(job_id).state == "done"


def test_a_queued_and_a_running_job_are_aborted(federation: Federation, tmp_path: Path) -> None:
    may_end = threading.Event()

    def slow(model: Arrays, task: Task) -> Update:
        may_end.wait(20)
        return adding(1.0)(model, task)

    pack, lead = packed(write_job(tmp_path / "small")), federation.lead()
    agents = [federation.agent("north", slow), federation.agent("south", slow)]
    running, queued = lead.submit(pack), lead.submit(pack)
    lead.wait_for(running, lambda found: found.sites == {"north": "joined", "south": "joined"})
    lead.abort(queued)
    assert lead.show(queued).summary.reason == "aborted by local"
    began = time.monotonic()
    lead.abort(running)
    assert lead.wait(running).state == "aborted"
    with refused("is-over"):
        lead.abort(running)
    may_end.set()
    third = lead.submit(pack)
    assert lead.wait(third).state == "done", "its slot is free"
    assert time.monotonic() - began < 15
    for agent in agents:  # by the goodbye, or by the withdrawal that comes first
        assert [ended for ended in agent.ended if ended.startswith(running)], agent.ended


def test_a_job_that_aggregates_is_aborted_and_not_done(federation: Federation, tmp_path: Path) -> None:
    code = (
        "import threading, pathlib, time\nfrom flcore.workflows.fed_avg import fed_avg\n"
        "def run(control):\n    clients = control.sample()\n"
        "    updates = control.train(control.initial_model, clients)\n"
        f"    gate = pathlib.Path({str(tmp_path)!r})\n    (gate / 'aggregates').touch()\n"
        "    while not (gate / 'go').exists():\n        time.sleep(0.01)\n"
        "    control.publish(updates.aggregate(), {})\n"
    )
    lead = federation.lead()
    for name in ("north", "south"):
        federation.agent(name)
    job_id = lead.submit(packed(write_job(tmp_path / "small", workflow="flow.py:run", flow=code)))
    while not (tmp_path / "aggregates").exists():
        time.sleep(0.01)
    lead.abort(job_id)
    assert lead.show(job_id).summary.state == "aborted"
    with refused("not-over", "just ending"):
        lead.ask(DeleteJob(id=job_id), Done)
    (tmp_path / "go").touch()
    until = time.monotonic() + 20
    while federation.server._scheduler.runner(1) is not None:
        assert time.monotonic() < until
        time.sleep(0.01)
    assert lead.show(job_id).summary.state == "aborted"
    assert not (federation.directory / "jobs" / job_id / "run/model.safetensors").exists()
    lead.ask(DeleteJob(id=job_id), Done)


def test_a_refusal_is_told_and_the_job_goes_on_while_its_quorum_allows(federation: Federation, tmp_path: Path) -> None:
    lead = federation.lead()
    federation.agent("north")
    federation.agent("south", refuse=lambda offer: f"{offer.name}: not signed by a known key")
    one, two = write_job(tmp_path / "one", "one", quorum=1), write_job(tmp_path / "two", "two", quorum=2)
    job_id = lead.submit(packed(one))
    assert lead.wait(job_id).state == "done"
    assert lead.show(job_id).sites["south"] == "refused: one: not signed by a known key"
    summary = lead.wait(lead.submit(packed(two)))
    assert summary.state == "failed"
    assert summary.reason == (
        "its quorum of 2 cannot be reached, as 1 of 2 sites refuses the job: south: two: not signed by a known key"
    )


def test_a_refusal_of_a_site_that_is_in_the_job_again_does_not_count(federation: Federation, tmp_path: Path) -> None:
    lead, may_end = federation.lead(), threading.Event()

    def slow(model: Arrays, task: Task) -> Update:
        may_end.wait(20)
        return adding(1.0)(model, task)

    first = federation.agent("north", slow)
    job_id = lead.submit(packed(write_job(tmp_path / "small", quorum=1, rounds=1)))
    lead.wait_for(job_id, lambda found: found.sites.get("north") == "joined")
    first.close()
    federation.agent("north", refuse=lambda _: "not at night")
    lead.wait_for(job_id, lambda found: found.sites.get("north") == "refused: not at night")
    federation.agents[-1].close()
    again = federation.agent("north", slow)
    lead.wait_for(job_id, lambda found: found.sites.get("north") == "joined")
    federation.agent("south", refuse=lambda _: "no data")
    lead.wait_for(job_id, lambda found: found.sites.get("south") == "refused: no data")
    assert federation.server._scheduler._database.refusals(1).keys() == {"south"}
    # A refusal that comes while the site's process is there counts when the process has gone.
    federation.server._scheduler.job_refused(1, "north", "its process has crashed")
    assert lead.show(job_id).summary.state == "running"
    again.close()
    may_end.set()
    assert "2 of 2 sites refuse the job" in lead.wait(job_id).reason


def test_a_failing_job_says_why_and_hurts_no_other(federation: Federation, tmp_path: Path) -> None:
    lead = federation.lead()
    for name in ("north", "south"):
        federation.agent(name)
    broken = "def run(control):\n    control.sample()\n    raise SystemExit('the lead has made a mistake')\n"
    job_id = lead.submit(packed(write_job(tmp_path / "bad", "bad", workflow="flow.py:run", flow=broken)))
    summary = lead.wait(job_id)
    assert (summary.state, summary.reason) == ("failed", "SystemExit: the lead has made a mistake")
    assert b"flow.py" in lead.ask(ReadLog(id=job_id), LogPart)[1], "the traceback is in the log"
    assert lead.wait(lead.submit(packed(write_job(tmp_path / "good")))).state == "done"


def test_a_site_whose_role_is_none_joins_neither_the_lobby_nor_a_job(federation: Federation, tmp_path: Path) -> None:
    (federation.directory / "roles.toml").write_text('[client]\nnorth = "none"\n')
    may_end = threading.Event()

    def train(model: Arrays, task: Task) -> Update:
        may_end.wait(30)
        return ADD_ONE(model, task)

    lead, south = federation.lead(), federation.agent("south", train)
    job_id = lead.submit(packed(write_job(tmp_path / "small", quorum=1)))
    until = time.monotonic() + 20
    while not south.started and time.monotonic() < until:  # then the job is hosted
        time.sleep(0.01)
    for job in ("", job_id):
        connection = GrpcConnection(federation.server.address, job=job)
        with refused("not-allowed", "client 'north' has the role none at this server"):
            next(connection.session(Join("north", "1", AgentJoinContent(version="").to_bytes())))
        connection.close()
    may_end.set()
    assert lead.wait(job_id).state == "done"


def test_a_role_that_is_taken_ends_transfers_and_a_broken_table_only_joins(
    federation: Federation, tmp_path: Path
) -> None:
    table = federation.directory / "roles.toml"
    service = MembersOnly(federation.server._scheduler.lobby, Roles(table))
    service.authorize("north")
    table.write_text("[client")
    with refused("unknown-session", "nobody has a role"):
        service.authorize("north")
    with refused("untimely"):  # as without a table: the transfer is looked at
        service.begin_download("north", 1, b"")
    table.write_text('[client]\nnorth = "none"\n')
    for transfer in (lambda: service.begin_download("north", 1, b""), lambda: service.authorize("north")):
        with refused("not-allowed"):
            transfer()


def test_an_offer_has_the_id_of_the_federation_and_the_digest_of_the_code_that_its_contract_names(
    federation: Federation, tmp_path: Path
) -> None:
    lead, offers = federation.lead(), list[JobOffer]()

    def refuse(offer: JobOffer) -> str:
        offers.append(offer)
        return "no"

    for name in ("north", "south"):
        federation.agent(name, refuse=refuse)
    job = write_job(tmp_path / "small")
    (job.directory / "alt-code").mkdir()
    (job.directory / "alt-code/wf.py").write_text("def run(control): pass\n")
    pack = packed(job)
    lead.wait(lead.submit(pack))
    lead.wait(lead.submit(pack, server__workflow="alt-code/wf.py:run"))
    changed = job.with_changes({"server.workflow": "alt-code/wf.py:run"})
    assert {offer.code_digest for offer in offers} == {job.code_digest, changed.code_digest}
    assert job.code_digest != changed.code_digest
    assert {len(offer.federation) for offer in offers} == {32} and len({offer.federation for offer in offers}) == 1


def test_the_reason_of_a_failed_job_has_no_path_of_the_server(federation: Federation, tmp_path: Path) -> None:
    lead = federation.lead()
    for name in ("north", "south"):
        federation.agent(name)
    code = "from json import missing\n"
    summary = lead.wait(lead.submit(packed(write_job(tmp_path / "bad", "bad", workflow="flow.py:run", flow=code))))
    assert summary.state == "failed" and "flow.py cannot be loaded: cannot import name 'missing'" in summary.reason
    assert "/" not in summary.reason


def test_a_deleted_job_leaves_nothing_and_its_pack_goes_with_the_last_job(
    federation: Federation, tmp_path: Path
) -> None:
    lead = federation.lead()
    for name in ("north", "south"):
        federation.agent(name)
    first = lead.submit(packed(write_job(tmp_path / "small")))
    second = lead.ask(CloneJob(id=first, changes={"server.rounds": 1}), JobQueued)[0].id
    for job_id in (first, second):
        lead.wait(job_id)
    assert lead.show(second).changes == {"server.rounds": 1}
    lead.ask(DeleteJob(id=first), Done)
    with refused("no-such-id", "expected the id of a job, got 'small-1'"):
        lead.show(first)
    assert len(list((federation.directory / "packs").iterdir())) == 1
    lead.ask(DeleteJob(id=second), Done)
    assert list((federation.directory / "packs").iterdir()) == [] == list((federation.directory / "jobs").iterdir())


def test_everything_is_in_the_audit_log_with_the_identity(federation: Federation, tmp_path: Path) -> None:
    alice, bob = federation.person("alice"), federation.person("bob")
    job_id = alice.submit(packed(write_job(tmp_path / "small")))
    with refused("not-allowed"):
        bob.abort(job_id)
    alice.abort(job_id)
    alice.ask(DeleteJob(id=job_id), Done)
    federation.close()
    log = (federation.directory / "audit.jsonl").read_text()
    events = [line.split('"event":"')[1].split('"')[0] for line in log.splitlines()]
    assert events == ["pack", "submit", "request-refused", "job-end", "abort", "delete"]
    assert log.count('"identity":"lead/alice"') == 4 and log.count('"identity":"lead/bob"') == 1
    assert verify(federation.directory / "audit.jsonl").fault is None


def test_a_refused_request_over_the_wire_has_one_entry(federation: Federation) -> None:
    with refused("no-such-id"):
        federation.lead().show("small-1")
    federation.close()
    assert (federation.directory / "audit.jsonl").read_text().count("-refused") == 1


def test_waiting_for_a_log_and_a_state_ends_with_the_change(federation: Federation, tmp_path: Path) -> None:
    lead = federation.lead()
    job_id = lead.submit(packed(write_job(tmp_path / "small", rounds=1)))
    log, offset, is_over = b"", 0, False
    followed = threading.Event()

    def follow(reader: Lead) -> None:
        nonlocal log, offset, is_over
        while not is_over:
            part, body = reader.ask(ReadLog(id=job_id, offset=offset, wait=True), LogPart)
            log, offset, is_over = log + body, part.next_offset, part.is_over
        followed.set()

    threading.Thread(target=follow, args=(federation.lead(),), daemon=True).start()
    for name in ("north", "south"):
        federation.agent(name)
    assert lead.wait(job_id).state == "done"
    assert followed.wait(10), "the end of the job ends the wait"
    assert log == (federation.directory / "jobs" / job_id / "server.log").read_bytes()


@pytest.mark.serial
def test_a_federation_without_jobs_costs_no_cpu(federation: Federation) -> None:
    for name in ("north", "south"):
        assert federation.agent(name).all_offered.wait(10)
    time.sleep(0.5)
    began = time.process_time()
    time.sleep(1.0)
    assert time.process_time() - began < 0.05


def test_with_the_plan_streaming_memory_is_a_reason_to_wait_or_to_refuse(federation_in: Start, tmp_path: Path) -> None:
    budget, needed = Budget(128 << 20), 40 << 20  # two models of 10 MB, and an exact total of four times that
    federation = federation_in(
        slots=2, plan="streaming", budget=budget, available_bytes=budget.nbytes + budget.overhead_bytes + 2 * needed
    )
    code = "import numpy as np\ndef initial_model(seed):\n    return {{'w': np.zeros({}, np.float32)}}\n"
    lead, may_end = federation.lead(), threading.Event()

    def train(model: Arrays, task: Task) -> Update:
        may_end.wait(20)
        return adding(1.0)(model, task)

    for name in ("north", "south"):
        federation.agent(name, train)
    small = packed(write_job(tmp_path / "small", rounds=1, code=code.format(2_000_000)))
    large = packed(write_job(tmp_path / "large", "large", code=code.format(20_000_000)))
    with refused("bad-job", "a model of 76MiB with the plan streaming takes"):
        lead.submit(large)
    first, second = lead.submit(small), lead.submit(small)
    found = lead.wait_for(second, lambda found: "memory" in found.summary.reason)
    assert found.summary.reason.startswith("waits for memory: it takes ")
    may_end.set()
    assert [lead.wait(job_id).state for job_id in (first, second)] == ["done", "done"]


def test_a_failing_model_function_is_told_at_the_submission_with_streaming(
    federation_in: Start, tmp_path: Path
) -> None:
    federation = federation_in(plan="streaming")
    code = "def initial_model(seed):\n    raise ValueError('no weights here')\n"
    with refused("bad-job", "server.model: the function raised ValueError: no weights here"):
        federation.lead().submit(packed(write_job(tmp_path / "small", code=code)))
    assert list((federation.directory / "jobs").iterdir()) == []


def test_model_functions_that_do_not_return_hold_up_no_other_request(
    federation_in: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_trial, "TIMEOUT_S", 4.0)
    federation = federation_in(plan="streaming")
    hang = "import time\ndef initial_model(seed):\n    time.sleep(1000)\n"
    digest = federation.lead().put(packed(write_job(tmp_path / "small", code=hang)))
    with ThreadPoolExecutor(6) as pool:
        submissions = [pool.submit(federation.lead().ask, SubmitJob(digest=digest), JobQueued) for _ in range(6)]
        began = time.monotonic()
        while time.monotonic() < began + 2:
            asked = time.monotonic()
            federation.lead().ask(ListJobs(), JobList)
            assert time.monotonic() < asked + 1.5
        reasons = [str(each.exception(30)) for each in submissions]
    assert sum("has not returned within 4 s" in reason for reason in reasons) >= 1
    assert all("has not returned within 4 s" in reason or "try again in a minute" in reason for reason in reasons)
    assert list((federation.directory / "jobs").iterdir()) == []


def test_jobs_that_are_over_leave_no_thread_no_module_and_no_file_open(federation: Federation, tmp_path: Path) -> None:
    lead, pack = federation.lead(), packed(write_job(tmp_path / "small", rounds=1))
    for name in ("north", "south"):
        federation.agent(name)

    def held() -> tuple[int, int, int]:
        gc.collect()
        status = Path("/proc/self/status").read_text()
        (threads,) = re.findall(r"^Threads:\s+(\d+)", status, re.MULTILINE)
        modules = sum(name.startswith("flcore_job_") for name in sys.modules)
        return int(threads), modules, len(list(Path("/proc/self/fd").iterdir()))

    for _ in range(3):
        lead.wait(lead.submit(pack))
    before = held()
    for _ in range(8):
        lead.wait(lead.submit(pack))
    until = time.monotonic() + 20
    while any(now > was + 4 for now, was in zip(held(), before, strict=True)):  # the last client is just leaving
        assert time.monotonic() < until, (before, held())
        time.sleep(0.1)


def test_a_disk_that_is_full_is_one_line_without_paths(
    federation: Federation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "/srv/federation/packs")

    monkeypatch.setattr("flcore.federation.pack_store.os.pwrite", full)
    with refused("disk", "the server's disk has failed (No space left on device); try again"):
        federation.person("alice").put(packed(write_job(tmp_path / "small")))
