"""The commands of a lead: what they print, their JSON, their errors in one line, and their exit codes."""

import json
import re
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from flcore_transport import ConnectionLost, Refused, WrongServer

from flcore import FlcoreError
from flcore.cli import federation_options, login
from flcore.cli.list_jobs import job_table
from flcore.federation.messages import JobSummary, SiteProgress
from flcore.job.pack import pack_job
from flcore.lead import connection
from flcore.lead.connection import FederationConnection
from flcore.lead.server_calls import ServerCalls
from flcore.number_text import bytes_text
from tests.flcore.command import said
from tests.flcore.lead.fake_server import FakeServer
from tests.flcore.lead.kits import federation_authority, unpacked_kit
from tests.flcore.lead.test_connection import write_job
from tests.flcore.lead.test_submitted_job import HISTORY, model_files

Flcore = Callable[..., str]


@pytest.fixture
def server() -> FakeServer:
    return FakeServer(part_bytes=1_000)


@pytest.fixture
def flcore(server: FakeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Flcore]:
    """Run a command at the server in memory. Profiles and kits are not looked at."""

    def connect(*_: Any, notify: Any = lambda _: None, **__: Any) -> FederationConnection:
        return FederationConnection(ServerCalls(server, "alice, lead of hospitals", notify, sleep=lambda _: None))

    monkeypatch.setattr(federation_options, "connect", connect)
    return lambda *arguments, code=0: said(*arguments, cwd=tmp_path, code=code)  # type: ignore[return-value]


def one_error(printed: str) -> str:
    (line,) = printed.splitlines()
    assert line.startswith("flcore: ")
    return line


def test_submit_prints_the_id(server: FakeServer, flcore: Flcore, tmp_path: Path) -> None:
    write_job(tmp_path / "line")
    assert flcore("submit", "line", "--set", "server.rounds=20", "--set", "server.rule=mean") == "myjob-1\n"
    assert server.details["myjob-1"] == {"changes": {"server.rounds": 20, "server.rule": "mean"}}
    assert json.loads(flcore("submit", "line", "--json")) == {"id": "myjob-2"}


def test_submit_and_clone_tell_of_clients_that_are_no_members(
    server: FakeServer, flcore: Flcore, tmp_path: Path
) -> None:
    write_job(tmp_path / "line")
    server.warnings = ["1 of 2 clients has never joined this federation: nroth\x1b[2J"]
    printed = flcore("submit", "line").splitlines()
    assert printed[0].startswith("myjob-1: 1 of 2 clients has never joined this federation: nroth")
    assert "\x1b" not in printed[0] and printed[1:] == ["myjob-1"]
    assert flcore("clone", "myjob-1").splitlines()[0].startswith("myjob-2: 1 of 2 clients")


def test_a_pack_and_a_bundled_job_are_submitted(server: FakeServer, flcore: Flcore, tmp_path: Path) -> None:
    import flcore as package

    pack_job(package.Job.load("digits"), tmp_path / "digits.flpack")
    assert flcore("submit", "digits") == "myjob-1\n"
    assert flcore("submit", "digits.flpack") == "myjob-2\n"
    assert len(server.packs) == 1  # the same bytes


@pytest.mark.parametrize("change", ["server.rounds", "=1", "server.round=1", "server.rounds=many", "name=x"])
def test_a_change_that_is_none_is_an_error(flcore: Flcore, change: str, tmp_path: Path, server: FakeServer) -> None:
    write_job(tmp_path / "line")
    one_error(flcore("submit", "line", "--set", change, code=1))
    assert server.requests == []


def test_a_job_that_is_none_is_an_error(flcore: Flcore, tmp_path: Path) -> None:
    assert "nothing" in one_error(flcore("submit", "nothing", code=1))
    (tmp_path / "broken.flpack").write_bytes(b"PK\3\4 and no more")
    assert "broken.flpack" in one_error(flcore("submit", "broken.flpack", code=1))


def test_submit_and_wait_ends_with_the_job(server: FakeServer, flcore: Flcore, tmp_path: Path) -> None:
    write_job(tmp_path / "line")
    threading.Timer(0.5, server.update, ["myjob-1"], {"state": "running", "round": 1}).start()
    threading.Timer(1.0, server.update, ["myjob-1"], {"state": "done", "round": 20}).start()
    assert flcore("submit", "line", "--wait").splitlines() == [
        "myjob-1",
        "myjob-1: queued, 20 rounds",
        "myjob-1: running, 1 of 20 rounds are over",
        "myjob-1: done, 20 of 20 rounds are over",
    ]


def test_submit_and_wait_fails_with_the_job(server: FakeServer, flcore: Flcore, tmp_path: Path) -> None:
    write_job(tmp_path / "line")
    failed = {"state": "failed", "reason": "2 of 2 sites refuse: not at night"}
    threading.Timer(0.5, server.update, ["myjob-1"], failed).start()
    last = flcore("submit", "line", "--wait", code=1).splitlines()[-1]
    assert last == "flcore: myjob-1 has failed: 2 of 2 sites refuse: not at night; see `flcore show myjob-1`"
    threading.Timer(0.5, server.update, ["myjob-2"], failed).start()
    printed = flcore("clone", "myjob-1", "--wait", "--json", code=1)
    (document,) = [line for line in printed.splitlines() if line.startswith("{")]
    assert json.loads(document)["job"]["state"] == "failed"


@pytest.mark.parametrize("command", [["submit", "line", "--wait"], ["logs", "digits-1", "--follow"]])
def test_ctrl_c_leaves_the_job_running_and_says_so(
    server: FakeServer, flcore: Flcore, command: list[str], tmp_path: Path
) -> None:
    write_job(tmp_path / "line")
    server.add_job()

    def interrupt(*_: Any) -> Any:
        raise KeyboardInterrupt

    server._wait = server._read_log = interrupt  # type: ignore[method-assign, assignment]
    printed = flcore(*command, code=130)
    assert re.search(r"-\d: goes on; follow it with `flcore logs .* --follow`, or end it", printed)
    assert {job.state for job in server.jobs.values()} <= {"running", "queued"}


@pytest.mark.parametrize(
    ("command", "request_name", "line"),
    [
        (["submit", "line"], "_put_pack", "interrupted before the job had an id: the same command resumes the upload"),
        (["download", "digits-1"], "_read_file", "interrupted: the same command resumes the download"),
    ],
)
def test_ctrl_c_in_a_transfer_says_how_to_go_on(
    server: FakeServer,
    flcore: Flcore,
    command: list[str],
    request_name: str,
    line: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    write_job(tmp_path / "line")
    server.files[server.add_job()] = {"server.log": b"log\n"}
    with monkeypatch.context() as patched:
        patched.setattr(server, request_name, lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        assert line in flcore(*command, code=130)
    flcore(*command)


def test_list_is_a_table(server: FakeServer, flcore: Flcore) -> None:
    assert flcore("list") == "no jobs\n"
    server.add_job("digits-1", state="done", round=20)
    server.add_job("digits-12", state="queued", reason="waits for a slot: 1 of 1 job runs")
    assert flcore("list").splitlines() == [
        "id         name    state   rounds  lead   submitted         reason",
        "digits-12  digits  queued  0/20    alice  2026-11-30 15:53  waits for a slot: 1 of 1 job runs",
        "digits-1   digits  done    20/20   alice  2026-11-30 15:53",
    ]
    assert flcore("list", "--state", "done").count("\n") == 2
    assert [job["id"] for job in json.loads(flcore("list", "--json"))["jobs"]] == ["digits-12", "digits-1"]
    assert "expected one of queued, running" in one_error(flcore("list", "--state", "lost", code=2))


@pytest.mark.parametrize("long", [1, 20, 60])
def test_the_table_fits_a_hundred_columns(long: int) -> None:
    name = "n" * long
    jobs = [
        JobSummary(
            id=f"{name}-{number}",
            name=name,
            state="running",
            reason="because\n\x1b[31m" * long,
            lead="l" * long,
            submitted="2026-11-30T15:53:29Z",
            round=999,
            rounds=1_000,
        )
        for number in (1, 123)
    ]
    lines = list(job_table(jobs))
    assert max(map(len, lines)) <= 100 and len(lines) == 3
    assert all(line.isprintable() for line in lines)
    if long <= 20:
        assert jobs[1].id in lines[2]  # an id can be copied


def test_show_is_a_sheet(server: FakeServer, flcore: Flcore) -> None:
    server.add_job("digits-3", round=3, started="2026-11-30T15:54:00Z")
    server.details["digits-3"] = {
        "signer": "alice",
        "quorum": 2,
        "changes": {"server.rounds": 20},
        "sites": {"north": "joined", "south": "refused: not at night"},
        "progress": {"north": SiteProgress(task="train", round=4, done=40, total=100)},
        "metrics": {"loss": 0.25},
    }
    printed = flcore("show", "digits-3")
    assert printed.splitlines() == [
        "id           digits-3",
        f"job          digits, contract {'c' * 64}",
        "state        running, 3 of 20 rounds are over",
        "lead         alice",
        "submitted    2026-11-30T15:53:29Z",
        "started      2026-11-30T15:54:00Z",
        f"pack         {'e' * 64}, signed, with a key that is called alice",
        f"code         {'d' * 64}",
        "changes      server.rounds = 20",
        "quorum       2 clients",
        "metrics      loss 0.25",
        "sites        north  joined, train of round 4: 40/100",
        "             south  refused: not at night",
    ]
    assert json.loads(flcore("show", "digits-3", "--json"))["summary"]["round"] == 3


def test_show_takes_a_directory_first(server: FakeServer, flcore: Flcore, tmp_path: Path) -> None:
    server.add_job("digits-3")
    (tmp_path / "digits-3").mkdir()
    (tmp_path / "digits-3/run.json").write_text("{}")
    assert "the file was altered" in one_error(flcore("show", "digits-3", code=1))
    assert "runs/digits-3" in one_error(flcore("show", "runs/digits-3", code=1))
    assert server.requests == []


def test_a_download_hides_no_job(server: FakeServer, flcore: Flcore) -> None:
    job = server.add_job(state="done")
    server.files[job] = {"server.log": b"log\n"}
    flcore("download", job)
    assert flcore("show", job).startswith("id           digits-1\n")


def test_logs_are_printed_and_control_no_terminal(server: FakeServer, flcore: Flcore) -> None:
    job = server.add_job(state="done")
    server.log(job, "round 1: ä\n\x1b[2Jlast".encode())
    server.log(job, b"at north\n", "north")
    assert flcore("logs", job) == "round 1: ä\n\\x1b[2Jlast\n"
    assert flcore("logs", job, "--follow") == "round 1: ä\n\\x1b[2Jlast\n"
    assert flcore("logs", job, "--client", "north") == "at north\n"
    for follow in ([], ["--follow"]):
        nothing = flcore("logs", job, "--client", "south", *follow)
        assert nothing.startswith(f"{job}: south has sent no lines; a site sends what share_logs in its site.toml")
    assert json.loads(flcore("logs", job, "--json"))["log"] == "round 1: ä\n\x1b[2Jlast"


def test_a_job_is_aborted_then_deleted(server: FakeServer, flcore: Flcore) -> None:
    job = server.add_job()
    assert "abort it first" in one_error(flcore("delete", job, code=1))
    assert flcore("abort", job) == "digits-1: aborted\n"
    assert server.jobs[job].state == "aborted"
    assert json.loads(flcore("delete", job, "--json")) == {"id": job, "deleted": True}
    assert server.jobs == {}


def test_another_leads_job_is_not_aborted(server: FakeServer, flcore: Flcore) -> None:
    server.add_job(lead="bob")
    assert "bob" in one_error(flcore("abort", "digits-1", code=1))


@pytest.mark.parametrize(
    "command", [["show"], ["logs"], ["logs", "--follow"], ["abort"], ["delete"], ["download"], ["clone"]]
)
def test_an_unknown_id_is_one_line_with_the_nearest(
    server: FakeServer, flcore: Flcore, command: list[str], tmp_path: Path
) -> None:
    server.add_job("digits-12")
    line = one_error(flcore(*command, "digits-13", code=1))
    assert "expected the id of a job, got 'digits-13'; did you mean digits-12?" in line
    assert list(tmp_path.iterdir()) == []


def test_a_download_says_what_came(server: FakeServer, flcore: Flcore, tmp_path: Path) -> None:
    job = server.add_job(state="done")
    (tmp_path / "source").mkdir()
    server.files[job] = {**model_files(tmp_path / "source"), "run/history.jsonl": HISTORY, "server.log": b"log\n"}
    size = bytes_text(sum(map(len, server.files[job].values())))
    assert flcore("download", job) == f"digits-1: 3 new, {size}, and report.txt\n"
    assert (tmp_path / "digits-1/report.txt").read_text().startswith("id           digits-1\n")
    (tmp_path / "digits-1/server.log").write_text("other")
    assert "server.log: expected no file, or the one of digits-1" in one_error(flcore("download", job, code=1))
    printed = flcore("download", job, "--overwrite")
    assert "replaced " in printed and printed.endswith(f"digits-1: 2 unchanged, 1 replaced, {size}, and report.txt\n")
    report = json.loads(flcore("download", job, "--out", "elsewhere", "--json"))
    assert report["directory"] == "elsewhere" and len(report["files"]) == 3
    assert {each["change"] for each in report["files"]} == {"new"}


def test_a_server_that_is_away_is_one_line(server: FakeServer, flcore: Flcore) -> None:
    server.fail_next()
    assert "fl.example.org:8470 cannot be reached" in one_error(flcore("list", code=1))


@pytest.mark.parametrize(
    "arguments",
    [
        ["list"],
        ["show", "digits-1"],
        ["logs", "digits-1"],
        ["abort", "digits-1"],
        ["download", "digits-1"],
        ["clone", "digits-1"],
        ["delete", "digits-1"],
        ["submit", "digits"],
    ],
)
def test_without_a_profile_every_command_says_how_to_get_one(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    assert "flcore login KIT" in one_error(said(*arguments, cwd=tmp_path, code=1))
    assert "--profile other" in one_error(said(*arguments, "--profile", "other", cwd=tmp_path, code=1))
    for wrong in (["--insecure"], ["--insecure", "--kit", "a"], ["--profile", "a", "--kit", "b"]):
        one_error(said(*arguments, *wrong, cwd=tmp_path, code=2))


def test_login_writes_the_profile_that_the_server_admits(
    server: FakeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    kit = unpacked_kit(federation_authority(tmp_path), tmp_path)

    def connect(*arguments: Any, **keys: Any) -> FederationConnection:
        server.address = connection.connect(*arguments, **keys).address
        return FederationConnection(ServerCalls(server, "alice, lead of hospitals"))

    monkeypatch.setattr(login, "connect", connect)
    path = tmp_path / "config/flcore/profiles.toml"
    server.fail_next(1, Refused("revoked", "expected a certificate that is not revoked, got one of alice"))
    assert "revoked" in one_error(said("login", "alice", cwd=tmp_path, code=1))
    server.fail_next(1, WrongServer("its certificate is not trusted"))
    assert "not trusted" in one_error(said("login", "alice", cwd=tmp_path, code=1))
    server.fail_next(1, ConnectionLost("it refused this client's certificate"))
    assert "refused" in one_error(said("login", "alice", cwd=tmp_path, code=1))
    assert not path.exists()
    assert "alice, lead of hospitals, server localhost:8470" in said("login", "alice", cwd=tmp_path)
    assert f'kit = "{kit}"' in path.read_text()
    server.fail_next()
    printed = said("login", "alice", "--profile", "two", "--server", "fl.example.org:9000", "--json", cwd=tmp_path)
    document, notice = printed.splitlines()
    assert json.loads(document)["server"] == "fl.example.org:9000" and not json.loads(document)["answers"]
    assert "cannot be reached" in notice and "the profile is written, unchecked" in notice
    assert path.read_text().count("kit =") == 2


@pytest.mark.parametrize(("kit", "problem"), [("nothing", "got none"), ("kits/alice.zip", "unzip"), ("certs", "site")])
def test_login_with_a_kit_that_is_none(kit: str, problem: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    unpacked_kit(federation_authority(tmp_path), tmp_path)
    assert problem in one_error(said("login", kit, cwd=tmp_path, code=1))
    assert not (tmp_path / "config").exists()


def test_an_error_of_the_server_is_shown_as_it_is(server: FakeServer, flcore: Flcore, tmp_path: Path) -> None:
    write_job(tmp_path / "line")
    server.fail_next(1, FlcoreError("the job needs 12 GiB, the server has 1 GiB"))
    assert one_error(flcore("submit", "line", code=1)) == "flcore: the job needs 12 GiB, the server has 1 GiB"
