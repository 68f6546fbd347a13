"""An agent with a lobby: jobs run, are refused, end, and are found again."""

import os
import select
import signal
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flcore_transport import ConnectionLost, TaskAssignment

from flcore import Job, Outcome, QuorumError, Site, Task, TaskFailed
from flcore.agent import supervised_job
from flcore.agent.agent import Agent, AgentIdentity
from flcore.agent.job_process import _SiteExecutor
from flcore.agent.process_group import ProcessGroup
from flcore.child_process import MessagesToParent
from flcore.federation.messages import SiteLog, SiteProgressReport
from flcore.identity.lead_keys import SigningKey
from flcore.job.pack import pack_job
from flcore.server.events import ClientFailed, Event
from tests.flcore.agent.standing import CODE, TOML, Lobby, Standing, agent_of, standing, write_job
from tests.flcore.agent.supervised import is_alive, job_setup, wait_until_gone

ENDLESS = TOML.replace("rounds = 2", "rounds = 100000")
ONE_FAILURE = TOML.replace("rounds = 2", 'rounds = 2\non_quorum_failure = "fail"')


@pytest.fixture
def federation(tmp_path: Path) -> Iterator[Standing]:
    with standing(tmp_path / "server") as made:
        yield made


def local(job_directory: Path, **more: object) -> dict[str, object]:
    return {"job_directories": [str(job_directory)], **more}


def until(is_so: Any, timeout_s: float = 60.0) -> Any:
    """Wait until something is so; return it."""
    end = time.monotonic() + timeout_s
    while not (found := is_so()):
        assert time.monotonic() < end
        time.sleep(0.01)
    return found


def begin(federation: Standing, number: int, job: Job, events: list[Event] | None = None) -> "Future[Outcome]":
    """Offer a job, and host it in a thread."""
    federation.offer(number, job)
    return begin_hosting(federation, number, job, events)


def begin_hosting(federation: Standing, number: int, job: Job, events: list[Event] | None = None) -> "Future[Outcome]":
    """Host a job in a thread."""
    outcome: Future[Outcome] = Future()

    def serve() -> None:
        try:
            outcome.set_result(federation.serve(number, job, ([] if events is None else events).append))
        except BaseException as error:  # noqa: BLE001 - the future raises it
            outcome.set_exception(error)

    threading.Thread(target=serve, daemon=True).start()
    return outcome


def logs(federation: Standing) -> str:
    return b"".join(body for _, request, body in federation.lobby.requests if isinstance(request, SiteLog)).decode()


def training(*statements: str) -> str:
    """Return the code of a job whose training executes some statements first."""
    return CODE.replace("    print", "".join(f"    {statement}\n" for statement in statements) + "    print")


NOTE_PID = "open('pid', 'w').write(str(os.getpid()))"


def pid_of(state: Path, job_id: str = "small-1") -> int:
    return int(until(lambda: (state / f"jobs/{job_id}/scratch/pid").exists() and read(state, job_id)))


def read(state: Path, job_id: str) -> str:
    return (state / f"jobs/{job_id}/scratch/pid").read_text()


def test_a_local_job_runs_to_its_end_and_leaves_only_its_log(federation: Standing, tmp_path: Path) -> None:
    job, state, notices = write_job(tmp_path / "small"), tmp_path / "state", list[str]()
    with agent_of(federation, state, local(tmp_path / "small"), notices=notices):
        outcome = begin(federation, 7, job).result(60)
        assert len(outcome.history) == 2 and outcome.history[1].updates["north"].weight == 1
        until(lambda: not list((state / "jobs").iterdir()))
        assert (state / "logs/small-7.log").read_text().count(f"trains in {state}/jobs/small-7/scratch") == 2
        _, report, _ = federation.lobby.until(
            lambda: next((row for row in federation.lobby.requests if isinstance(row[1], SiteProgressReport)), None)
        )
        assert (report.client, report.id) == ("north", "small-7")
        assert (report.progress.task, report.progress.done, report.progress.total) == ("train", 1, 2)
    assert any(notice == "small-7: round 1 of 2: train 1 of 2 (50 %)" for notice in notices)
    assert not federation.lobby.refusals


@pytest.mark.serial
def test_the_first_task_comes_within_a_second_of_the_offer(federation: Standing, tmp_path: Path) -> None:
    code = training("print('begins', time.time(), flush=True)")
    job, state = write_job(tmp_path / "small", code), tmp_path / "state"
    with agent_of(federation, state, local(tmp_path / "small")) as agent:
        federation.lobby.until(lambda: federation.lobby.links)
        took = []
        for number in (1, 2, 3):
            wait_for_warm_process(agent)
            offered_at = time.time()
            begin(federation, number, job).result(60)
            log = (state / f"logs/small-{number}.log").read_text()
            took.append(float(log.partition("begins ")[2].split()[0]) - offered_at)
    print("seconds from the offer to the first task:", [round(each, 3) for each in took])
    assert min(took) < 1


@pytest.mark.serial
def test_an_idle_agent_uses_no_processor(federation: Standing, tmp_path: Path) -> None:
    with agent_of(federation, tmp_path / "state", local(write_job(tmp_path / "small").directory)) as agent:
        federation.lobby.until(lambda: federation.lobby.links)
        warm = wait_for_warm_process(agent)
        before = time.process_time() + processor_seconds(warm.pid)
        time.sleep(3)
        assert time.process_time() + processor_seconds(warm.pid) - before < 0.03, "of the agent, its process and server"


def wait_for_warm_process(agent: Agent) -> ProcessGroup:
    """Return the warm process of an agent once it has done its imports, and says so."""
    warm: ProcessGroup = until(lambda: agent._processes._warm)
    assert select.select([warm.messages], [], [], 60)[0]
    return warm


def processor_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "no directory": ({}, "job_directories: this site has no directory of a job 'small'"),
    "another name": ({"limits": {"names": ["big*"]}}, "limits.names: this site does not run jobs of the name 'small'"),
    "too many rounds": ({"limits": {"max_rounds": 1}}, "limits.max_rounds: this site runs 1 round at most"),
    "now": ({"limits": {"hours": "20:00-06:00"}}, "limits.hours: this site runs jobs during 20:00-06:00"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_refusal_is_told_once_with_its_key(name: str, federation: Standing, tmp_path: Path) -> None:
    rules, reason = REFUSED[name]
    job = write_job(tmp_path / "small", "raise SystemExit")
    content = rules if name == "no directory" else local(job.directory, **rules)
    noon = datetime(2026, 1, 1, 12).astimezone()
    with agent_of(federation, tmp_path / "state", content, now=lambda: noon):
        federation.offer(1, job)
        [(client, number, told)] = federation.lobby.until(lambda: federation.lobby.refusals)
        assert (client, number) == ("north", 1) and told.startswith(reason)
        time.sleep(0.3)
        assert len(federation.lobby.refusals) == 1 and not list((tmp_path / "state/jobs").iterdir())


@pytest.mark.parametrize(
    ("limits", "reasons"),
    [
        ({"names": ["big*"]}, ["limits.names: this site does not run jobs of the name 'small'"] * 2),
        ({"max_rounds": 1, "tasks": ["train"]}, ["limits.max_rounds: this site runs 1 round at most"] * 2),
        ({"names": ["small"], "hours": "20:00-06:00"}, []),  # at night
        ({"max_rounds": 3}, []),
    ],
)
def test_limits_that_exclude_all_jobs_of_a_site_are_told_to_its_owner(
    limits: dict[str, Any], reasons: list[str], federation: Standing, tmp_path: Path
) -> None:
    write_job(tmp_path / "jobs/one", "raise SystemExit")
    write_job(tmp_path / "jobs/two", "raise SystemExit")
    notices = list[str]()
    with agent_of(federation, tmp_path / "state", local(tmp_path / "jobs", limits=limits), notices=notices):
        until(lambda: any(notice.startswith("joined") for notice in notices))
    if not reasons:
        assert notices[0].startswith("joined"), notices
        return
    assert notices[0].startswith("this site runs no job, as its limits exclude all that lie here: small (limits.")
    assert [notices[0].count(reason) for reason in reasons] == [2, 2]
    assert "change [limits] in site.toml, or list another job (job_directories); then start" in notices[0]


@pytest.mark.parametrize("names_a_signer", [False, True])
def test_a_site_that_runs_nothing_says_so_and_joins(names_a_signer: bool, federation: Standing, tmp_path: Path) -> None:
    (tmp_path / "alice.pub").write_bytes(SigningKey.create("alice").public.pem)
    content: dict[str, Any] = {"signers": [str(tmp_path / "alice.pub")]} if names_a_signer else {}
    notices = list[str]()
    with agent_of(federation, tmp_path / "state", content, notices=notices):
        until(lambda: len(notices) == 2)
    assert notices[0].startswith("this site runs no job yet, as no job directory is listed; write into site.toml: ")
    assert 'job_directories = ["path/to/the/job"]' in notices[0] and 'jobs = "signed"' in notices[0]
    assert notices[1].startswith("joined ")


def test_a_site_that_runs_jobs_says_nothing_of_it(federation: Standing, tmp_path: Path) -> None:
    notices = list[str]()
    job = write_job(tmp_path / "small", "raise SystemExit")
    with agent_of(federation, tmp_path / "state", local(job.directory), notices=notices):
        until(lambda: notices)
    assert notices[0].startswith("joined ")


def test_more_jobs_than_allowed_wait_for_a_place_and_are_not_refused(federation: Standing, tmp_path: Path) -> None:
    job, state = write_job(tmp_path / "small", training(NOTE_PID), ENDLESS), tmp_path / "state"
    reason = "limits.max_jobs: this site runs 1 job at a time"
    notices: list[str] = []
    with agent_of(federation, state, local(job.directory, limits={"max_jobs": 1}), notices=notices):
        federation.lobby.until(lambda: federation.lobby.links)
        for number in (1, 2, 3):
            begin(federation, number, job)
        first = pid_of(state)
        until(lambda: f"small-2: waits: {reason}" in notices and f"small-3: waits: {reason}" in notices)
        assert "small-2: starts" not in notices
        federation.withdraw(1)  # its process ends later: until then it takes its place
        pid_of(state, "small-2")
        assert not is_alive(first) and "small-3: starts" not in notices
        federation.withdraw(2)
        pid_of(state, "small-3")
        assert logs(federation).count(f"the job waits for a place: {reason}") == 2
    assert not federation.lobby.refusals


def test_a_place_that_a_refused_job_leaves_goes_to_the_next(
    federation: Standing, tmp_path: Path, alice: SigningKey
) -> None:
    """A pack is judged after its download, and takes a place meanwhile."""
    job, state = write_job(tmp_path / "small"), tmp_path / "state"
    good = pack_job(job, tmp_path / "good.flpack", alice)
    bad = pack_job(job, tmp_path / "bad.flpack")
    outcome = begin_hosting(federation, 2, job)
    federation.offer(1, job, bad)
    federation.offer(2, job, good)
    with agent_of(federation, state, signed(tmp_path) | {"limits": {"max_jobs": 1}}):
        assert len(outcome.result(60).history) == 2
    assert [number for _, number, _ in federation.lobby.refusals] == [1]


def test_offers_that_cannot_be_read_are_refused(federation: Standing, tmp_path: Path) -> None:
    with agent_of(federation, tmp_path / "state", {}):
        federation.lobby.until(lambda: federation.lobby.links)
        for number, content in enumerate([b"", b"{}", b'{"id": "../../etc-1"}'], 1):
            federation.lobby.send(TaskAssignment(number, content))
        federation.lobby.until(lambda: len(federation.lobby.refusals) == 3)
        assert all(told.startswith("the offer cannot be read") for *_, told in federation.lobby.refusals)


def test_code_that_is_edited_after_its_admission_does_not_run_after_a_crash(
    federation: Standing, tmp_path: Path
) -> None:
    job, state = write_job(tmp_path / "small", training(NOTE_PID), ENDLESS), tmp_path / "state"
    with agent_of(federation, state, local(job.directory, same_code=True)):
        begin(federation, 1, job)
        first = pid_of(state)
        (state / "jobs/small-1/scratch/pid").unlink()
        (job.directory / "small.py").write_text(training("open('edited', 'w')", NOTE_PID))
        os.kill(first, signal.SIGKILL)
        [(_, number, told)] = federation.lobby.until(lambda: federation.lobby.refusals)
        assert number == 1 and told.startswith("same_code: the code in this site's directory is not the submitted code")
        assert not (state / "jobs/small-1/scratch/edited").exists()


def test_a_refusal_for_code_that_cannot_be_loaded_has_no_path_of_the_site(federation: Standing, tmp_path: Path) -> None:
    job, notices = write_job(tmp_path / "small", CODE + "\nfrom json import missing\n"), list[str]()
    with agent_of(federation, tmp_path / "state", local(job.directory), notices=notices):
        federation.lobby.until(lambda: federation.lobby.links)
        federation.offer(1, job)
        [(_, _, told)] = federation.lobby.until(lambda: federation.lobby.refusals)
    assert told.startswith("job.toml: client.executor: small.py cannot be loaded: cannot import name 'missing'")
    assert "/" not in told
    assert any(f"refused: {job.directory}/job.toml" in notice for notice in notices), "its owner gets the path"


# Signed packs.


@pytest.fixture
def alice(tmp_path: Path) -> SigningKey:
    key = SigningKey.create("alice")
    (tmp_path / "alice.pub").write_bytes(key.public.pem)
    return key


def signed(tmp_path: Path) -> dict[str, object]:
    return {"jobs": "signed", "signers": [str(tmp_path / "alice.pub")]}


def test_a_signed_job_runs_from_its_pack_and_is_not_downloaded_twice(
    federation: Standing, tmp_path: Path, alice: SigningKey
) -> None:
    job, state = write_job(tmp_path / "small", training(NOTE_PID), ENDLESS), tmp_path / "state"
    packed = pack_job(job, tmp_path / "small.flpack", alice)
    begin(federation, 1, job)
    federation.offer(1, job, packed)
    with agent_of(federation, state, signed(tmp_path)):
        first = pid_of(state)
    assert not is_alive(first) and federation.lobby.downloads == 1
    (state / "jobs/small-1/scratch/pid").unlink()
    (state / "jobs/small-1/job/small.py").write_text("raise SystemExit('changed at the site')")
    with agent_of(federation, state, signed(tmp_path)):
        assert pid_of(state) != first and federation.lobby.downloads == 1
    assert not federation.lobby.refusals


def test_packs_that_are_offered_at_once_are_downloaded_one_by_one(
    federation: Standing, tmp_path: Path, alice: SigningKey
) -> None:
    """A session has one download at a time: a second one would end the first."""
    job = write_job(tmp_path / "small", toml=TOML.replace("rounds = 2", "rounds = 1"))
    (job.directory / "notes.txt").write_bytes(os.urandom(1 << 19).hex().encode())
    packed = pack_job(job, tmp_path / "small.flpack", alice)
    with agent_of(federation, tmp_path / "state", signed(tmp_path)):
        federation.lobby.until(lambda: federation.lobby.links)
        for number in (1, 2, 3):
            federation.offer(number, job, packed)
        outcomes = [begin_hosting(federation, number, job) for number in (1, 2, 3)]
        assert all(len(outcome.result(60).history) == 1 for outcome in outcomes)
    assert federation.lobby.downloads == 3 and not federation.lobby.refusals


BAD_PACKS = {
    "unsigned": 'jobs = "signed": the pack has no signature',
    "signed by another key": "signers: the pack has no valid signature",
    "another pack than was offered": 'jobs = "signed": the pack that came is not the one',
    "a pack that is damaged": 'jobs = "signed": ',
    "a pack that is longer than a file may be": 'jobs = "signed": expected a pack of up to',
    "a layout of another size": 'jobs = "signed": expected the offered pack as one segment',
    "a contract of the server's": 'jobs = "signed": the offered contract is not that of the pack with its changes',
}


@pytest.mark.parametrize("name", BAD_PACKS)
def test_a_bad_pack_is_refused_and_runs_nothing(
    name: str, federation: Standing, tmp_path: Path, alice: SigningKey
) -> None:
    job, state = write_job(tmp_path / "small", "open('/tmp/never', 'w')"), tmp_path / "state"
    key = {"unsigned": None, "signed by another key": SigningKey.create("alice")}.get(name, alice)
    packed, changes = pack_job(job, tmp_path / "small.flpack", key), dict[str, Any]()
    if name == "a pack that is damaged":
        content = bytearray(packed.path.read_bytes())
        content[len(content) // 2] ^= 1
        packed.path.write_bytes(bytes(content))
    elif name == "another pack than was offered":
        changes["pack_digest"] = "5" * 64
    elif name == "a pack that is longer than a file may be":
        changes["pack_nbytes"] = 1 << 40
    elif name == "a layout of another size":
        changes["pack_nbytes"] = 5_000_000
    elif name == "a contract of the server's":
        other = write_job(tmp_path / "other", toml=TOML.replace("rounds = 2", "rounds = 3"))
        changes |= {"contract": other.contract.to_json(), "contract_fingerprint": other.contract.fingerprint}
    with agent_of(federation, state, signed(tmp_path)):
        federation.offer(1, job, packed, **changes)
        [(_, _, told)] = federation.lobby.until(lambda: federation.lobby.refusals)
    assert told.startswith(BAD_PACKS[name]) and str(tmp_path) not in told
    assert not (state / "jobs/small-1/job").exists() and not list(state.glob("jobs/*/*.flpack"))


# What goes wrong while a job runs.


def test_a_process_that_dies_in_a_task_is_started_again(federation: Standing, tmp_path: Path) -> None:
    code = CODE.replace(
        "    print",
        "    if task.round == 1 and not os.path.exists('died'):\n        open('died', 'w'); os._exit(9)\n    print",
    )
    job = write_job(tmp_path / "small", code)
    notices: list[str] = []
    with agent_of(federation, tmp_path / "state", local(job.directory), notices=notices):
        outcome = begin(federation, 1, job).result(60)
    assert len(outcome.history) == 2 and float(outcome.model.arrays()["w"][0]) == 2
    assert any("ended unexpectedly: exit code 9; it is started again in 1 s (1 of 5)" in line for line in notices)


def test_a_process_that_always_dies_is_given_up_and_the_lead_is_told(
    federation: Standing, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervised_job, "MAX_RESTARTS", 1)
    monkeypatch.setattr(supervised_job, "FIRST_BACKOFF_S", 0.01)
    job = write_job(tmp_path / "small", "import os\nos._exit(9)")
    with agent_of(federation, tmp_path / "state", local(job.directory)):
        federation.lobby.until(lambda: federation.lobby.links)
        federation.offer(1, job)
        [(_, number, told)] = federation.lobby.until(lambda: federation.lobby.refusals)
        assert number == 1 and "has ended 2 times" in told and "exit code 9" in told
        federation.lobby.send(federation.lobby.offers[1][0])  # as after the next welcome
        federation.lobby.until(lambda: len(federation.lobby.refusals) == 2)
        assert federation.lobby.refusals[1][2] == told
        until(lambda: logs(federation).count("exit code 9; it is started again") == 1)


def test_a_withdrawn_job_that_hangs_is_ended_and_removed(federation: Standing, tmp_path: Path) -> None:
    code = training(NOTE_PID, "while True: time.sleep(1)")
    job, state = write_job(tmp_path / "small", code, ENDLESS), tmp_path / "state"
    with agent_of(federation, state, local(job.directory)):
        begin(federation, 1, job)
        pid = pid_of(state)
        federation.lobby.send(federation.lobby.offers[1][0])
        time.sleep(0.2)
        assert is_alive(pid), "an offer that comes again leaves a running job alone"
        federation.withdraw(1)
        wait_until_gone(pid)
        until(lambda: not list((state / "jobs").iterdir()))


SHARED = {
    "errors": ("task 'train' raised ValueError: no patients\n", "task 'train' raised ValueError: no patients"),
    "none": ("", "the task failed; the message stays at the site"),
    "all": ("reads the data\n", "task 'train' raised ValueError: no patients"),
}


@pytest.mark.parametrize("share_logs", SHARED)
def test_the_server_gets_what_the_site_shares(share_logs: str, federation: Standing, tmp_path: Path) -> None:
    lines, failure = SHARED[share_logs]
    code = CODE.replace(
        "    return flcore",
        "    print('reads the data', flush=True); raise ValueError('no patients')\n    return flcore",
    )
    job, events = write_job(tmp_path / "small", code, ONE_FAILURE), list[Event]()
    with agent_of(federation, tmp_path / "state", local(job.directory, share_logs=share_logs)):
        with pytest.raises(QuorumError):
            begin(federation, 1, job, events).result(60)
        time.sleep(1.5)
    [failed] = [event for event in events if isinstance(event, ClientFailed)]
    assert failure in failed.reason and ("no patients" in failed.reason) == (share_logs != "none")
    if share_logs == "all":
        assert lines in logs(federation) and "Traceback" not in logs(federation).split("reads the data")[0]
        assert "small.py" in logs(federation), "the traceback, too"
    else:
        assert logs(federation) == lines
    log = (tmp_path / "state/logs/small-1.log").read_text()
    assert "reads the data" in log and "ValueError: no patients" in log and "small.py" in log


@pytest.mark.long
def test_shared_prints_come_in_batches_a_second_apart(federation: Standing, tmp_path: Path) -> None:
    code = CODE.replace(
        "    return flcore",
        "    for n in range(300): print('line', n, flush=True); time.sleep(0.01)\n    return flcore",
    )
    job = write_job(tmp_path / "small", code)
    with agent_of(federation, tmp_path / "state", local(job.directory, share_logs="all")):
        begin(federation, 1, job).result(60)
        federation.lobby.until(lambda: logs(federation).count("line 299\n") == 2)
    times = [moment for moment, request, _ in federation.lobby.requests if isinstance(request, SiteLog)]
    assert 5 <= len(times) <= times[-1] - times[0] + 2


def test_a_leak_in_a_task_is_told_to_the_server(federation: Standing, tmp_path: Path) -> None:
    code = CODE.replace(
        "    return flcore", "    blocks = [bytearray(64 << 20) for _ in range(100)]\n    return flcore"
    )
    job, events = write_job(tmp_path / "small", code, ONE_FAILURE), list[Event]()
    rules = local(job.directory, limits={"memory": "1GiB"})
    with agent_of(federation, tmp_path / "state", rules), pytest.raises(QuorumError):
        begin(federation, 1, job, events).result(60)
    [failed] = [event for event in events if isinstance(event, ClientFailed)]
    assert "MemoryError" in failed.reason
    assert "MemoryError" in (tmp_path / "state/logs/small-1.log").read_text()


def test_a_round_beyond_the_sites_limit_is_refused_by_the_process(tmp_path: Path) -> None:
    """The contract's number of rounds, which the policy has admitted, does not bind a server."""
    job, site = write_job(tmp_path / "small"), Site("north")
    setup = job_setup(tmp_path / "other", "", max_rounds=2)
    executor = _SiteExecutor(job, site, setup, MessagesToParent.__new__(MessagesToParent))
    model = {"w": np.zeros(3, np.float32)}
    executor._on_progress = None
    assert executor.run(model, Task("train", 2, 2, 0, {}, site)).weight == 1
    with pytest.raises(TaskFailed, match=r"limits\.max_rounds: this site runs 2 rounds at most, and was asked for 3"):
        executor.run(model, Task("train", 3, 3, 0, {}, site))


def test_a_job_that_runs_when_the_hours_end_is_ended_and_keeps_its_state(federation: Standing, tmp_path: Path) -> None:
    code = training(NOTE_PID, "time.sleep(0.5)")
    job, state = write_job(tmp_path / "small", code, ENDLESS), tmp_path / "state"
    clock = [datetime(2026, 1, 1, 5, 59, 57).astimezone()]
    rules = local(job.directory, limits={"hours": "20:00-06:00"})
    with agent_of(federation, state, rules, now=lambda: clock[0]):
        begin(federation, 1, job)
        pid = pid_of(state)
        clock[0] = clock[0].replace(hour=6, minute=0, second=1)
        federation.lobby.until(lambda: federation.lobby.refusals)
        assert federation.lobby.refusals[0][2] == "limits.hours: this site's hours for jobs, 20:00-06:00, are over"
        assert not is_alive(pid) and (state / "jobs/small-1/state").is_dir()
        (state / "jobs/small-1/scratch/pid").unlink()
        clock[0] = clock[0].replace(hour=20)
        federation.lobby.send(federation.lobby.offers[1][0])
        assert pid_of(state) != pid


# Restarts.


def test_an_agent_that_is_started_again_goes_on_with_the_kept_update(federation: Standing, tmp_path: Path) -> None:
    code = training(NOTE_PID, "open('../../../trained', 'a').write('x')")
    toml = TOML.replace("rounds = 2", "rounds = 1\nquorum = 2")
    job, state = write_job(tmp_path / "small", code, toml), tmp_path / "state"
    kept = state / "jobs/small-1/state/answer-train/answer.json"
    with agent_of(federation, tmp_path / "south", local(job.directory), client="south"):
        outcome = begin(federation, 1, job)
        with agent_of(federation, state, local(job.directory)):
            until(kept.exists)
            first = pid_of(state)
        if not outcome.done():
            assert not is_alive(first)
            with agent_of(federation, state, local(job.directory)):
                outcome.result(60)
        outcome.result(60)
    assert (state / "trained").read_text() == "x"


def test_jobs_that_are_not_offered_after_a_welcome_are_over(federation: Standing, tmp_path: Path) -> None:
    job, state = write_job(tmp_path / "small", training(NOTE_PID), ENDLESS), tmp_path / "state"
    for number in range(1, 13):
        (state / f"jobs/small-{number}").mkdir(parents=True)
        (state / "logs").mkdir(exist_ok=True)
        (state / f"logs/small-{number}.log").write_text("it ran\n")
        os.utime(state / f"logs/small-{number}.log", (number, number))
    begin(federation, 12, job)
    with agent_of(federation, state, local(job.directory)):
        pid_of(state, "small-12")
        until(lambda: [path.name for path in (state / "jobs").iterdir()] == ["small-12"])
        until(lambda: len(list((state / "logs").iterdir())) == 11)
        assert not (state / "logs/small-1.log").exists(), "ten logs of other jobs stay"


@pytest.mark.long
def test_an_agent_that_gives_up_says_how_long_it_has_tried_and_why(tmp_path: Path) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        identity = AgentIdentity("north", f"127.0.0.1:{unused.getsockname()[1]}", None)
        agent = Agent(identity, {}, None, tmp_path / "state", give_up_after_s=0.1)
        told = (
            r"^given up after \d+ s of trying; the last error: 127\.0\.0\.1:\d+ cannot be reached: connection refused"
        )
        with pytest.raises(ConnectionLost, match=told):
            agent.run()


def test_a_server_that_comes_back_finds_the_running_job(tmp_path: Path) -> None:
    job, state = write_job(tmp_path / "small", training(NOTE_PID), ENDLESS), tmp_path / "state"
    first = Standing(tmp_path / "server")
    outcome = begin(first, 1, job)
    with agent_of(first, state, local(job.directory)):
        pid = pid_of(state)
        lobby = Lobby()
        lobby.offers |= first.lobby.offers  # a server knows its running jobs before it welcomes an agent
        first.close()
        second = Standing(tmp_path / "server", lobby, int(first.address.rpartition(":")[2]))
        with pytest.raises(BaseException):  # noqa: B017 - the first server is gone
            outcome.result(60)
        (state / "jobs/small-1/scratch/pid").unlink()
        begin(second, 1, job)
        assert pid_of(state) == pid, "the same process has joined the second server"
        assert not second.lobby.refusals
        second.close()
