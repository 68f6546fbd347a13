"""Real processes, and what happens when they are killed, interrupted, or come too early."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest

from flcore import Arrays, Task, Update, load
from flcore.server.events import BytesTransferred
from tests.flcore.command import said
from tests.flcore.conftest import Function, Stage, adding, mean_of
from tests.flcore.processes import (
    alive_in_group,
    client_of,
    free_port,
    read_until,
    server_of,
    started,
    taking_part,
    write_small_job,
)

STALLING = """
import sys, threading
import numpy as np
from flcore_transport import GrpcConnection, Join, UploadRequest, TaskAssignment, Outbox
from flcore import Model
from flcore.job.messages import JoinContent, AnswerContent

address, contract = sys.argv[1], sys.argv[2]
connection = GrpcConnection(address)
stream = connection.session(Join("victim", "1", JoinContent(contract=contract, code_digest="", version="").to_bytes()))
welcome = next(stream)
assignment = next(stream)
model = Model.of({"w": np.full((2, 3), 99, np.float32), "b": np.full(1_500_000, 99, np.float32)})

class Stalling(Outbox):
    def piece(self, index):
        if index == 2:
            print("in the middle of the upload", flush=True)
            threading.Event().wait()
        return super().piece(index)

message = AnswerContent(returns="weights", weight=500.0, spec_fingerprint=model.spec.fingerprint)
request = UploadRequest(
    welcome.session_secret, assignment.assignment_id, message.to_bytes(), model.layout, assignment.token
)
connection.upload(request, Stalling(model))
"""

BIG = (
    "import numpy as np\ndef initial_model(seed): return {'w': np.zeros((2, 3), 'f4'), 'b': np.zeros(1_500_000, 'f4')}"
)


@pytest.mark.long
@pytest.mark.parametrize("stage", ["grpc"], indirect=True)
def test_a_client_killed_in_mid_upload_leaves_no_trace(stage: Stage) -> None:
    (stage.directory / "big.py").write_text(BIG)
    stage.open(wait_for=3, quorum=2, clients=["victim", "good-1", "good-2"], rounds=2, model="big.py:initial_model")
    contract = stage.job.contract.to_json()
    arrived = threading.Event()

    def adding_later(value: float) -> Function:
        def train(model: Arrays, task: Task) -> Update:
            assert arrived.wait(60)
            return adding(value)(model, task)

        return train

    with started("-c", STALLING, stage.server.address, contract) as victim:
        stage.client("good-1", adding_later(1.0))
        stage.client("good-2", adding_later(3.0))
        read_until(victim, "in the middle of the upload")
        # It may print that before the server has read what it sent.
        give_up_at = time.monotonic() + 60
        while not any(isinstance(event, BytesTransferred) and event.received for event in stage.events):
            assert time.monotonic() < give_up_at
            time.sleep(0.01)
        arrived.set()
        os.kill(victim.pid, signal.SIGKILL)
        killed_at = time.monotonic()
        outcome = stage.result()
    assert time.monotonic() - killed_at < 20, (
        "the round waited for its deadline, and not for the grace of a lost client"
    )
    assert mean_of(outcome) == {4.0}
    assert sorted(outcome.history[0].updates) == ["good-1", "good-2"]
    assert "connection was lost" in outcome.history[0].failed["train"]["victim"]
    assert outcome.history[1].sampled == ("good-1", "good-2")
    # Pieces of the victim's did arrive.
    assert outcome.history[0].bytes_received > 2 * 1_500_000 * 4 + (2 << 20)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A directory with a small job in it."""
    write_small_job(tmp_path)
    return tmp_path


def test_clients_that_come_before_their_server(folder: Path) -> None:
    port, contract = free_port(), folder / "small/job.toml"
    contract.write_text(contract.read_text().replace("rounds = 100000", "rounds = 2"))
    with started(*client_of(port, "one"), cwd=folder) as first, started(*client_of(port, "two"), cwd=folder) as second:
        read_until(first, "joining")
        read_until(second, "joining")
        with started(*server_of(port), cwd=folder) as server:
            printed = read_until(server, "done:")
            assert f"flcore client small --name NAME --server localhost:{port} --insecure" in printed
            assert "one joined" in printed and "round 2/2: 2 of 2 clients" in printed
            assert server.wait(60) == 0
        assert "the job is done" in read_until(first, "the job is done")
        assert first.wait(60) == second.wait(60) == 0


def wait_for_first_round(run: "subprocess.Popen[str]", directory: Path) -> None:
    """Wait until a run has written its history."""
    log = directory / "history.jsonl"
    while not log.exists() or log.stat().st_size == 0:
        assert run.poll() is None, run.communicate()[0]
        time.sleep(0.05)


def end_of(group: int) -> None:
    """Wait until a whole process group has ended."""
    give_up_at = time.monotonic() + 60
    while alive_in_group(group) and time.monotonic() < give_up_at:
        time.sleep(0.05)
    assert alive_in_group(group) == []


@pytest.mark.parametrize("to_group", [True, False])
def test_ctrl_c_ends_a_run_and_all_its_workers(folder: Path, to_group: bool) -> None:
    with started("-m", "flcore", "run", "small", "--workers", "2", cwd=folder) as run:
        wait_for_first_round(run, folder / "runs/small")
        assert len(alive_in_group(run.pid)) == 3
        # From a terminal, Ctrl-C reaches every process of the group; from a supervisor, the one it knows.
        (os.killpg if to_group else os.kill)(run.pid, signal.SIGINT)
        printed = run.communicate(timeout=60)[0]
        assert run.returncode == 130
        *rounds, last = printed.splitlines()
        assert rounds and all(line.startswith("round ") for line in rounds)
        assert last.startswith("interrupted after ") and last.endswith("history are in runs/small")
        end_of(run.pid)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["ctrl-c", "sigterm"])
def test_a_signal_ends_server_and_client_in_order(folder: Path, number: signal.Signals, code: int) -> None:
    port = free_port()
    with started(*server_of(port), cwd=folder) as server:
        read_until(server, "--insecure")
        with (
            started(*client_of(port, "one"), cwd=folder) as client,
            started(*client_of(port, "two"), cwd=folder) as other,
        ):
            read_until(server, "round 2/100000")
            os.kill(client.pid, number)
            printed = client.communicate(timeout=60)[0]
            assert client.returncode == code and "Traceback" not in printed
            os.kill(server.pid, number)
            printed = server.communicate(timeout=60)[0]
            assert server.returncode in (code, 1) and "Traceback" not in printed
            read_until(other, "the server was stopped" if server.returncode == code else "the job failed")
            assert other.wait(60) == 1
            hidden = {path.name for path in (folder / "runs/small").iterdir() if path.name.startswith(".")}
            assert hidden <= {".updates", ".published", ".changes"}, "more than the run needs to go on"


@pytest.mark.parametrize(
    ("number", "code", "cause"),
    [(signal.SIGINT, 130, ""), (signal.SIGTERM, 143, "by SIGTERM ")],
    ids=["ctrl-c", "sigterm"],
)
def test_a_server_that_is_interrupted_says_so_in_one_line(
    folder: Path, number: signal.Signals, code: int, cause: str
) -> None:
    with started(*server_of(0), cwd=folder) as alone:
        read_until(alone, "--insecure")
        os.kill(alone.pid, number)
        printed = alone.communicate(timeout=60)[0]
        assert printed.splitlines()[-1].partition(" [20")[0] == f"interrupted {cause}in the first round", printed
        assert alone.returncode == code
    port = free_port()
    with started(*server_of(port), cwd=folder) as server:
        read_until(server, "--insecure")
        with taking_part(folder, port, "one", "two"):
            read_until(server, "round 2/100000")
            os.kill(server.pid, number)
            printed = server.communicate(timeout=60)[0]
    count = len((folder / "runs/small/history.jsonl").read_text().splitlines())
    found = f"interrupted {cause}after {count} rounds; the last model and the history are in runs/small ["
    assert printed.splitlines()[-1].startswith(found), f"{count} rounds:\n{printed}"
    assert printed.count("interrupted ") == 1, printed
    assert server.returncode == code


def test_a_client_says_that_it_has_lost_its_server(folder: Path) -> None:
    port = free_port()
    with started(*server_of(port), cwd=folder) as server:
        assert "plan batch, budget 1024MiB: at most 1440MiB of memory" in read_until(server, "--insecure")
        with started(*client_of(port, "one"), cwd=folder) as client:
            read_until(client, "joined")
            os.kill(server.pid, signal.SIGKILL)
            read_until(client, "one: the connection is lost; joining again as soon as the server is there")


def test_workers_do_not_outlive_a_run_that_is_killed(folder: Path) -> None:
    with started("-m", "flcore", "run", "small", "--rounds", "100000", "--workers", "2", cwd=folder) as run:
        wait_for_first_round(run, folder / "runs/small")
        assert len(alive_in_group(run.pid)) == 3
        os.kill(run.pid, signal.SIGKILL)
        run.wait()
        end_of(run.pid)


def test_a_port_that_is_taken_is_one_line_and_costs_no_run(folder: Path) -> None:
    run = folder / "runs/small"
    run.mkdir(parents=True)
    (run / "history.jsonl").write_text("{}\n")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        printed = said("server", "small", "--insecure", "--port", str(port), "--fresh", cwd=folder, code=1)
    assert printed.startswith(f"flcore: cannot listen on 127.0.0.1:{port}: address already in use; ")
    assert printed.count("\n") == 1 and "--port" in printed
    assert (run / "history.jsonl").exists() and not run.with_name("small.1").exists()


def test_ctrl_c_while_the_command_is_imported_is_quiet(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import importlib.abc, os, signal, sys\n"
        "class Interrupting(importlib.abc.MetaPathFinder):\n"
        "    def find_spec(self, name, *_):\n"
        "        if name == 'flcore':\n"
        "            os.kill(os.getpid(), signal.SIGINT)\n"
        "sys.meta_path.insert(0, Interrupting())\n"
    )
    command = "import sitecustomize, flcore_command; flcore_command.main()"
    paths = os.pathsep.join([str(tmp_path), *sys.path])
    done = subprocess.run(
        [sys.executable, "-c", command], env={**os.environ, "PYTHONPATH": paths}, capture_output=True, check=False
    )
    assert done.returncode == -signal.SIGINT and not done.stderr


def test_a_worker_that_cannot_start_ends_the_run_with_its_reason(tmp_path: Path) -> None:
    (tmp_path / "job.toml").write_text(
        'name = "broken"\nclients = 2\n[server]\nmodel = "code.py:model"\nrounds = 1\n'
        '[client]\nexecutor = "code.py:Site"\n[tasks.train]\nreturns = "weights"\n'
    )
    (tmp_path / "code.py").write_text(
        "import numpy as np\n"
        "def model(seed): return {'w': np.zeros(2)}\n"
        "class Site:\n"
        "    def __init__(self, site): open('/nowhere/patients.csv')\n"
        "    def train(self, model, task): ...\n"
    )
    with started("-m", "flcore", "run", ".", "--workers", "2", cwd=tmp_path) as run:
        printed = run.communicate(timeout=60)[0]
    assert run.returncode == 1
    assert "FileNotFoundError" in printed and "/nowhere/patients.csv" in printed and "Traceback" not in printed


@pytest.mark.parametrize(
    ("address", "cause"),
    [("nohost.invalid:8470", "the name 'nohost.invalid' is not known"), ("127.0.0.1:{free}", "connection refused")],
)
def test_a_client_names_why_its_server_cannot_be_reached_and_two_signals_end_it_quietly(
    address: str, cause: str
) -> None:
    address = address.format(free=free_port())
    command = ("-m", "flcore", "client", "digits", "--server", address, "--insecure-remote", "--name", "hospital-a")
    with started(*command) as client:
        read_until(client, "joining")
        began = time.monotonic()
        read_until(client, f"{address} cannot be reached: {cause}")
        assert time.monotonic() - began < 15
        assert client.poll() is None
        os.kill(client.pid, signal.SIGTERM)
        os.kill(client.pid, signal.SIGTERM)
        printed = client.communicate(timeout=60)[0]
    assert client.returncode == 143
    assert "Traceback" not in printed and "Exception" not in printed


@pytest.mark.long
def test_a_job_that_failed_ends_its_clients_with_an_error(folder: Path) -> None:
    job = folder / "small/job.toml"
    job.write_text(job.read_text().replace("quorum = 2", "quorum = 2\ndeadline_s = 1\non_quorum_failure = 'fail'"))
    (folder / "small/small.py").write_text(
        (folder / "small/small.py")
        .read_text()
        .replace("import numpy as np\n", "import time\nimport numpy as np\n", 1)
        .replace("    return flcore", "    time.sleep(30 if task.site.name == 'two' else 0)\n    return flcore")
    )
    port = free_port()
    with started(*server_of(port), cwd=folder) as server:
        read_until(server, "--insecure")
        with started(*client_of(port, "one"), cwd=folder) as one, started(*client_of(port, "two"), cwd=folder):
            assert server.wait(60) == 1
            printed = one.communicate(timeout=60)[0]
            assert one.returncode == 1
            assert "flcore: the job failed: " in printed and "Traceback" not in printed


def test_closed_standard_streams_are_nobodys_files(folder: Path) -> None:
    command = f"exec {sys.executable} -m flcore run small --workers 0 --rounds 3 --out out <&- >&- 2>&-"
    assert subprocess.run(["sh", "-c", command], cwd=folder, timeout=60, check=False).returncode == 0
    rounds = [json.loads(line)["round"] for line in (folder / "out/history.jsonl").read_text().splitlines()]
    assert rounds == [1, 2, 3]
    load(folder / "out/model.safetensors")


DROPPED = """
import signal, sys, threading, time, weakref
from flcore.process import exit_on_sigterm
exit_on_sigterm()

class Thing: pass

def finalizer():
    signal.raise_signal(signal.{name})
    for _ in range(1000): pass

thing = Thing()
weakref.finalize(thing, finalizer)
del thing
time.sleep(20)
"""


@pytest.mark.parametrize(("name", "code"), [("SIGTERM", 143), ("SIGINT", -2)])
def test_a_signal_that_comes_within_a_finalizer_is_not_lost(name: str, code: int) -> None:
    """Python drops what is raised there."""
    done = subprocess.run(
        [sys.executable, "-c", DROPPED.format(name=name)], stderr=subprocess.DEVNULL, timeout=60, check=False
    )
    assert done.returncode == code


def test_a_log_that_nobody_reads_stops_no_job(folder: Path) -> None:
    contract = folder / "small/job.toml"
    contract.write_text(contract.read_text().replace("rounds = 100000", "rounds = 3"))
    read, write = os.pipe()
    os.set_blocking(write, False)
    with suppress(BlockingIOError):
        while True:
            os.write(write, b"x" * 65_536)
    os.set_blocking(write, True)
    port = free_port()
    server = subprocess.Popen([sys.executable, *server_of(port)], cwd=folder, stderr=write)
    try:
        with taking_part(folder, port, "one", "two"):
            assert server.wait(60) == 0
    finally:
        server.kill()
        server.wait()
        os.close(read)
        os.close(write)
