"""`flcore client` without a job, as a process: how it starts, what it says, and how it ends with all of its jobs."""

import os
import signal
import stat
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from flcore import JobError
from flcore.agent.agent import Agent, AgentIdentity
from flcore.agent.local_jobs import resolve_job_directories
from flcore.agent.standby import StandbyProcesses, require_python
from flcore.job.bundled_jobs import BUNDLED_JOBS
from flcore.version import __version__
from tests.flcore.agent.standing import CODE, TOML, Standing, standing, write_job
from tests.flcore.agent.supervised import is_alive, wait_until_gone
from tests.flcore.agent.test_agent import ENDLESS, NOTE_PID, begin, pid_of, training
from tests.flcore.command import said
from tests.flcore.processes import alive_in_group, read_until, started


@pytest.fixture
def federation(tmp_path: Path) -> Iterator[Standing]:
    with standing(tmp_path / "server") as made:
        yield made


def texts(printed: str) -> list[str]:
    """Return the lines of a log without times and names."""
    return [line.partition(" [20")[0] for line in printed.splitlines()]


def agent_command(federation: Standing, *options: str) -> tuple[str, ...]:
    return ("-m", "flcore", "client", "--server", federation.address, "--insecure", "--name", "north", *options)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_agent_that_is_ended_ends_its_jobs_and_says_so(
    number: int, code: int, federation: Standing, tmp_path: Path
) -> None:
    job = write_job(tmp_path / "small", training(f"if task.round == 3: {NOTE_PID}"), ENDLESS)
    with started(*agent_command(federation, "--jobs-dir", "small"), cwd=tmp_path) as agent:
        printed = read_until(agent, "joined")
        begin(federation, 1, job)
        pid = pid_of(tmp_path / "north-agent")
        agent.send_signal(number)
        printed += agent.communicate(timeout=30)[0]
        assert agent.returncode == code, printed
        assert not is_alive(pid) and "Traceback" not in printed
    lines = texts(printed)
    joining = f"north: joining the federation at {federation.address} as soon as it can be reached; Ctrl-C leaves"
    assert lines[:2] == [joining, f"north: joined {federation.address}"]
    assert "north: small-1: round 1 of 100000: train 1 of 2 (50 %)" in lines
    assert "north: small-1: starts" in lines and "north: small-1: round 1 of 100000: train is in" in lines
    assert lines[-1] == "north: has left; its jobs go on here when it is started again"


def test_a_killed_agent_leaves_no_process_and_the_next_one_goes_on(federation: Standing, tmp_path: Path) -> None:
    job, command = write_job(tmp_path / "small", training(NOTE_PID), ENDLESS), agent_command(federation)
    command += ("--jobs-dir", "small", "--state", "state")
    with started(*command, cwd=tmp_path) as agent:
        read_until(agent, "joined")
        begin(federation, 1, job)
        pid = pid_of(tmp_path / "state")
        group = children_of(agent.pid)
        assert pid in group and len(group) == 2, "the job's process and the warm one"
        agent.kill()
        for process in group:
            wait_until_gone(process)
    (tmp_path / "state/jobs/small-1/scratch/pid").unlink()
    with started(*command, cwd=tmp_path) as agent:
        assert pid_of(tmp_path / "state") != pid
        with started(*command, cwd=tmp_path) as second:
            printed = second.communicate(timeout=30)[0]
            assert second.returncode == 1 and f"state is in use by process {agent.pid}" in printed


def test_an_agent_that_has_ended_keeps_no_process_warm() -> None:
    processes = StandbyProcesses(None, None)
    processes.refill()
    warm = processes._warm
    assert warm is not None and is_alive(warm.pid)
    processes.close()
    processes.refill()
    assert not is_alive(warm.pid) and processes._warm is None


def children_of(pid: int) -> list[int]:
    return [
        int(entry.name)
        for entry in Path("/proc").iterdir()
        if entry.name.isdecimal() and parent_of(entry) == pid and is_alive(int(entry.name))
    ]


def parent_of(entry: Path) -> int:
    try:
        return int((entry / "stat").read_text().rpartition(")")[2].split()[1])
    except (FileNotFoundError, ProcessLookupError):
        return 0


def test_usage(tmp_path: Path) -> None:
    write_job(tmp_path / "small")
    printed = said(
        "client", "small", "--jobs-dir", ".", "--name", "a", "--server", "a:1", "--insecure", cwd=tmp_path, code=2
    )
    assert "--jobs-dir: expected it without JOB only" in printed.replace("'", "")
    printed = said("client", cwd=tmp_path, code=1)
    assert "expected a kit, as TLS needs a certificate" in printed


def test_a_bundled_job_is_named_without_a_path(tmp_path: Path) -> None:
    directories = resolve_job_directories([("digits", tmp_path / "digits", "job_directories")])
    assert directories == [BUNDLED_JOBS / "digits"]
    with pytest.raises(JobError, match="job_directories: expected a directory"):
        resolve_job_directories([("/srv/digits", Path("/srv/digits"), "job_directories")])
    write_job(tmp_path / "digits")
    assert resolve_job_directories([("digits", tmp_path / "digits", "")]) == [tmp_path / "digits"]


WRONG_STARTS: dict[str, tuple[dict[str, Any], str]] = {
    "a directory that does not exist": ({"job_directories": ["none"]}, "job_directories: expected a directory"),
    "a directory without a job": ({"job_directories": ["."]}, "job_directories: expected a directory with job.toml"),
    "a job that cannot be read": ({"job_directories": ["broken"]}, "job_directories: .*expected TOML"),
    "a key that does not exist": ({"jobs": "signed", "signers": ["none.pub"]}, "signers: .*none.pub"),
    "a key that is none": ({"jobs": "signed", "signers": ["broken/job.toml"]}, "signers: .*Ed25519 public key"),
    "a python that does not exist": ({"python": "bin/python"}, "python: expected the Python .*No such file"),
    "a python that is a directory": ({"python": "."}, "python: expected the Python .*(Permission denied|directory)"),
    "a misspelt key": ({"limit": {}}, "limit: there is no such key; did you mean limits"),
}


@pytest.mark.parametrize("name", WRONG_STARTS)
def test_a_site_that_cannot_be_used_is_refused_at_the_start(name: str, tmp_path: Path) -> None:
    content, words = WRONG_STARTS[name]
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken/job.toml").write_text("name =")
    (tmp_path / "site.toml").touch()
    if name == "a directory without a job":
        (tmp_path / "broken/job.toml").unlink()
    with pytest.raises(JobError, match=words) as caught:
        Agent(AgentIdentity("north", "localhost:1", None), content, tmp_path / "site.toml", tmp_path / "state")
    assert "\n" not in str(caught.value) and not (tmp_path / "state").exists()


def fake_python(path: Path, script: str) -> str:
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


FAKES = {
    "an older Python": ("echo 'Unknown option: -P' >&2; exit 2", "cannot import it: Unknown option: -P"),
    "no flcore": ("echo \"ModuleNotFoundError: No module named 'flcore'\" >&2; exit 1", "No module named 'flcore'"),
    "another flcore": ("printf 0.0.1", f"expected flcore {__version__}, as the agent has, got 0.0.1"),
    "a program that prints nothing": ("exit 3", "it printed nothing"),
}


@pytest.mark.parametrize("name", FAKES)
def test_a_python_without_this_flcore_is_refused(name: str, tmp_path: Path) -> None:
    script, words = FAKES[name]
    with pytest.raises(JobError, match=words):
        require_python(fake_python(tmp_path / "python", script))


def test_jobs_run_in_the_python_of_the_site(federation: Standing, tmp_path: Path) -> None:
    """The script stands for an environment of the site's, with its own modules."""
    paths = os.environ.get("PYTHONPATH", "")
    python = fake_python(
        tmp_path / "python", f"export PYTHONPATH='{paths}' SITE_PYTHON=yes\nexec {sys.executable} \"$@\""
    )
    code = training("print('in', os.environ.get('SITE_PYTHON'), task.site.config, os.environ['CUDA_VISIBLE_DEVICES'])")
    job = write_job(tmp_path / "small", code)
    (tmp_path / "site.toml").write_text(
        f'path = "/data"\njob_directories = ["small"]\npython = "{python}"\n[limits]\ngpus = "1,2"\n[data]\nrows = 3\n'
    )
    command = agent_command(federation, "--site", "site.toml", "--state", "state")
    with started(*command, cwd=tmp_path) as agent:
        read_until(agent, "joined")
        begin(federation, 1, job).result(60)
    time.sleep(0.1)
    log = (tmp_path / "state/logs/small-1.log").read_text()
    assert "in yes {'path': '/data', 'data': {'rows': 3}} 1,2" in log
    assert not alive_in_group(agent.pid)


def test_the_site_file_names_its_wrong_key_in_one_line(federation: Standing, tmp_path: Path) -> None:
    (tmp_path / "site.toml").write_text('[limits]\nhours = "late"\n')
    with started(*agent_command(federation, "--site", "site.toml"), cwd=tmp_path) as agent:
        printed = agent.communicate(timeout=30)[0]
    assert agent.returncode == 1
    assert printed == (
        "flcore: site.toml: limits.hours: expected two times of the day, such as \"20:00-06:00\", got 'late'\n"
    )


def test_progress_is_shown_by_a_client_of_one_job(tmp_path: Path) -> None:
    from tests.flcore.processes import client_of, free_port, server_of

    port = free_port()
    write_job(tmp_path / "small", CODE, TOML)
    with started(*server_of(port), cwd=tmp_path) as server:
        read_until(server, "listening on")
        with started(*client_of(port, "north"), cwd=tmp_path) as client:
            printed = client.communicate(timeout=60)[0]
            assert client.returncode == server.wait(30) == 0
    assert "north: round 1 of 2: train 1 of 2 (50 %)" in printed, printed
