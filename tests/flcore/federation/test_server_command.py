"""`flcore server` without a job, as a process: it is killed and stopped, and its jobs go on. See standing-server.md."""

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from flcore_transport import ConnectionLost, GrpcConnection

from flcore import Arrays, Task, Update
from flcore.federation.job_database import JobDatabase
from flcore.federation.messages import JobList, JobQueued, ListJobs, SubmitJob
from flcore.federation.roles import Roles
from tests.flcore.command import said
from tests.flcore.conftest import adding
from tests.flcore.federation.small_federation import Agent, Federation, Lead, model_of, packed, write_job
from tests.flcore.processes import free_port, started
from tests.test_readme import blocks

ROUNDS = 3


def slow(model: Arrays, task: Task) -> Update:
    time.sleep(0.1)
    return adding(1.0)(model, task)


@contextmanager
def lead_of(port: int) -> Iterator[Lead]:
    """A lead, once the server is there."""
    connection = GrpcConnection(f"localhost:{port}")
    lead, until = Lead(connection.ask), time.monotonic() + 30
    while True:
        try:
            lead.ask(ListJobs(), JobList)
            break
        except ConnectionLost:
            assert time.monotonic() < until
            time.sleep(0.1)
    try:
        yield lead
    finally:
        connection.close()


def test_a_server_that_is_killed_loses_no_job_and_one_that_is_stopped_says_so(tmp_path: Path) -> None:
    port = free_port()
    command = ("-m", "flcore", "server", "--insecure", "--port", str(port), "--jobs", "2")
    agents = [Agent(f"localhost:{port}", name, slow) for name in ("north", "south")]
    pack = packed(write_job(tmp_path / "small", rounds=ROUNDS))
    try:
        with started(*command, cwd=tmp_path) as server, lead_of(port) as lead:
            ids = [lead.submit(pack) for _ in range(3)]
            lead.wait_for(ids[0], lambda found: found.summary.round >= 1)
            server.kill()
            server.wait(30)
        with started(*command, cwd=tmp_path) as server, lead_of(port) as lead:
            for job_id in ids:
                summary = lead.wait(job_id)
                assert (summary.state, summary.round) == ("done", ROUNDS)
                assert np.all(model_of(tmp_path / "federation", job_id) == ROUNDS)
            server.send_signal(signal.SIGTERM)
            assert server.wait(30) == 128 + signal.SIGTERM
            assert server.stdout is not None
            printed = server.stdout.read()
    finally:
        for agent in agents:
            agent.close()
    assert "listening on localhost" in printed and "flcore client --name NAME --server localhost" in printed
    assert f"{ids[0]} goes on" in printed and f"{ids[2]} is done" in printed
    assert "stopped by SIGTERM; jobs that run go on" in printed and "Traceback" not in printed


CRASH = "import os\n\nfrom flcore import Sum\n\n"
CRASHING: dict[str, tuple[str, dict[str, str]]] = {
    "its workflow": ("def run(control):\n    os._exit(3)\n", {"server__workflow": "flow.py:run"}),
    "its rule, while the workflow waits": (
        "crash = Sum('crash', lambda weight: os._exit(3))\n",
        {"server__rule": "flow.py:crash"},
    ),
}


@pytest.mark.parametrize("where", CRASHING)
def test_a_job_that_crashes_the_server_is_failed_after_three_starts_and_the_others_go_on(
    where: str, tmp_path: Path, kernels: None
) -> None:
    port = free_port()
    command = ("-m", "flcore", "server", "--insecure", "--port", str(port), "--jobs", "2")
    agents = [Agent(f"localhost:{port}", name) for name in ("north", "south")]
    code, changes = CRASHING[where]
    crashing = packed(write_job(tmp_path / "crashing", "crashing", flow=CRASH + code))
    try:
        with started(*command, cwd=tmp_path) as server, lead_of(port) as lead:
            digest = lead.put(packed(write_job(tmp_path / "small")))
            bad = lead.submit(crashing, **changes)
            good = lead.ask(SubmitJob(digest=digest), JobQueued)[0].id
            assert server.wait(60) == 3
    finally:
        for agent in agents:
            agent.close()
    with JobDatabase(tmp_path / "federation/federation.sqlite") as database:
        numbers = [int(job_id.rpartition("-")[2]) for job_id in (bad, good)]
        assert database.starts()[numbers[0]] == 1
        for number in (numbers[0], *numbers):  # two more, of which the good job has run in one
            database.count_start(number)
    federation = Federation(tmp_path / "federation", slots=2)
    try:
        for name in ("north", "south"):
            federation.agent(name)
        assert federation.lead().wait(good).state == "done"
        found = federation.lead().wait(bad)
        assert found.state == "failed" and "has ended 3 times in a row while the job ran" in found.reason
        assert federation.lead().show(bad).sites.keys() == {"north", "south"}
    finally:
        federation.close()
    with JobDatabase(tmp_path / "federation/federation.sqlite") as database:
        assert database.starts() == {}


def test_the_roles_of_the_page_are_read(tmp_path: Path) -> None:
    (table,) = blocks("toml", (Path(__file__).parents[3] / "docs/standing-server.md").read_text())
    (tmp_path / "roles.toml").write_text(table)
    roles = Roles(tmp_path / "roles.toml")
    given = [
        roles.caller(name, role, "").role for name, role in (("alice", "lead"), ("bob", "lead"), ("north", "client"))
    ]
    assert given == ["admin", "none", "lead"]


def test_options_of_the_other_form_are_refused(tmp_path: Path) -> None:
    for options in (("--wait-for", "2"), ("--fresh",)):
        text = said("server", "--insecure", *options, cwd=tmp_path, code=2)
        assert "expected a job with --wait-for and --fresh, got none" in text
    assert "expected no job with --jobs" in said("server", "digits", "--insecure", "--jobs", "2", cwd=tmp_path, code=2)
    text = said("server", "--insecure", "--jobs", "20", cwd=tmp_path, code=1)
    assert "expected a budget of 1280MiB for 20 jobs at a time, got 1024MiB; raise --budget, or lower --jobs" in text
    (tmp_path / "federation").mkdir(exist_ok=True)
    (tmp_path / "federation/roles.toml").write_text("[lead")
    assert "roles.toml: expected TOML" in said("server", "--insecure", cwd=tmp_path, code=1)
