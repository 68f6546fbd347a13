"""A lead at a real standing server: a job's whole life, a restart while it is followed, Ctrl-C, the commands."""

import json
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from flcore_transport import Refused

import flcore
from flcore import Arrays, Task, Update
from tests.flcore.command import said
from tests.flcore.conftest import adding
from tests.flcore.federation.conftest import federation, federation_in  # noqa: F401 - fixtures
from tests.flcore.federation.small_federation import Federation, write_job
from tests.flcore.processes import read_until, started


def slowly(model: Arrays, task: Task) -> Update:
    time.sleep(0.3)
    return adding(1.0)(model, task)


def test_a_whole_life_in_python(federation: Federation, tmp_path: Path) -> None:  # noqa: F811 - the fixture
    federation.agent("north")
    federation.agent("south")
    job_directory = write_job(tmp_path / "line", "line").directory
    with flcore.connect(server=federation.server.address, insecure=True) as connection:
        job = connection.submit(job_directory, {"server.rounds": 3})
        assert [each.round for each in job.rounds()] == [1, 2, 3]
        seen = [(each.state, each.round) for each in job.follow()]
        assert seen == sorted(seen, key=lambda each: each[1]) and seen[-1] == ("done", 3)
        assert job.wait().id == "line-1" and job.details.changes == {"server.rounds": 3}
        assert [record.round for record in job.history] == [1, 2, 3]
        with job.model() as model:
            assert np.array_equal(model.tensor("w"), np.full((2, 3), 3.0))
        assert "round 3/3" in job.logs()
        names = {each.name for each in job.download(tmp_path / "out")}
        assert {"run/history.jsonl", "run/model.safetensors", "server.log"} <= names
        assert {each.change for each in job.download(tmp_path / "out")} == {"unchanged"}
        again = connection.clone("line-1", {"server.rounds": 1})
        assert again.wait(60).rounds == 1
        job.delete()
        with pytest.raises(Refused, match=r"got 'line-1'; did you mean line-2\?"):
            connection.job("line-1")


def test_a_job_is_followed_over_a_restart(federation: Federation, tmp_path: Path) -> None:  # noqa: F811
    federation.agent("north", slowly)
    federation.agent("south", slowly)
    notices, got = list[str](), list[str]()
    with flcore.connect(server=federation.server.address, insecure=True, notify=notices.append) as connection:
        job = connection.submit(write_job(tmp_path / "line", "line", rounds=4).directory)
        follower = threading.Thread(target=lambda: got.extend(job.follow_logs()))
        follower.start()
        next(each for each in job.rounds() if each.round == 1)
        federation.server.close()
        federation.start()
        assert job.wait(60).round == 4
        follower.join(30)
    assert not follower.is_alive()
    text = "".join(got)
    assert all(text.count(f"round {number}/4") == 1 for number in range(1, 5))
    assert len(notices) <= 2  # one for each thread that waited


def test_the_commands(federation: Federation, tmp_path: Path) -> None:  # noqa: F811
    federation.agent("north")
    federation.agent("south")
    write_job(tmp_path / "line", "line")
    where = ("--server", federation.server.address, "--insecure")

    def run(*words: str, code: int = 0) -> str:
        return said(*words, *where, cwd=tmp_path, code=code)

    assert run("submit", "line", "--wait").splitlines()[::100] == ["line-1"]
    assert run("list").splitlines()[1].split()[:4] == ["line-1", "line", "done", "2/2"]
    assert "2 of 2 rounds are over" in run("show", "line-1")
    assert "round 2/2" in run("logs", "line-1", "--follow")
    assert run("clone", "line-1", "--set", "server.rounds=1") == "line-2\n"
    assert "report.txt" in run("download", "line-1")
    assert json.loads(run("delete", "line-1", "--json"))["deleted"]
    assert "did you mean line-2?" in run("show", "line-1", code=1)
    assert "expected a client of line-2, got 'west'" in run("logs", "line-2", "--client", "west", code=1)
    assert "clients" in run("clone", "line-2", "--set", "clients=[]", code=1)


def test_ctrl_c_leaves_the_job_running(federation: Federation, tmp_path: Path) -> None:  # noqa: F811
    write_job(tmp_path / "line", "line")
    where = ("--server", federation.server.address, "--insecure")
    with started("-m", "flcore", "submit", "line", "--wait", *where, cwd=tmp_path) as process:
        read_until(process, "line-1: queued")
        process.send_signal(signal.SIGINT)
        assert "line-1: goes on" in read_until(process, "flcore abort line-1")
        assert process.wait(20) == 130
    assert "queued" in said("show", "line-1", *where, cwd=tmp_path)
    assert said("abort", "line-1", *where, cwd=tmp_path) == "line-1: aborted\n"
