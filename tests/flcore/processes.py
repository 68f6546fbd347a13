"""Starting flcore's processes in tests, and making sure that they end."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from flcore_transport import GrpcConnection

from flcore import Job, Site
from flcore.client.client import Client
from flcore.client.executor import Executor

JOB = """
name = "small"
clients = ["one", "two", "three"]

[server]
model = "small.py:initial_model"
rounds = 100000
quorum = 2

[client]
executor = "small.py"

[tasks.train]
returns = "weights"
"""

CODE = """
import numpy as np
import flcore

def initial_model(seed):
    return {"w": np.zeros(1000, np.float32)}

def train(model, task):
    return flcore.Update({"w": model["w"] + np.float32(1.0)}, weight=1.0)
"""


def write_small_job(directory: Path) -> None:
    """Write `small`, a job whose processes start as fast as any can."""
    (directory / "small").mkdir()
    (directory / "small/job.toml").write_text(JOB)
    (directory / "small/small.py").write_text(CODE)


def write_slow_job(directory: Path, rounds: int) -> None:
    """Write `small` with so many rounds, each of which takes a third of a second."""
    write_small_job(directory)
    contract, code = directory / "small/job.toml", directory / "small/small.py"
    contract.write_text(contract.read_text().replace("rounds = 100000", f"rounds = {rounds}"))
    code.write_text(
        code.read_text()
        .replace("import numpy", "import time\nimport numpy", 1)
        .replace("    return flcore", "    time.sleep(0.3)\n    return flcore")
    )


def server_of(port: int, *options: str) -> tuple[str, ...]:
    """Return the command of the server of `small`, for `started`."""
    return ("-m", "flcore", "server", "small", "--insecure", "--port", str(port), *options)


def client_of(port: int, name: str, *, job: str = "small") -> tuple[str, ...]:
    """Return the command of a client of `small`, or of another job."""
    return ("-m", "flcore", "client", job, "--server", f"localhost:{port}", "--insecure", "--name", name)


@contextmanager
def started(*command: str, cwd: Path | None = None) -> Iterator["subprocess.Popen[str]"]:
    """Run `python -m flcore COMMAND` in a process group of its own; whatever is left of it is killed at the end."""
    process = subprocess.Popen(
        [sys.executable, *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=cwd,
        start_new_session=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    try:
        yield process
    finally:
        if alive_in_group(process.pid):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


@contextmanager
def taking_part(directory: Path, port: int, *names: str) -> Iterator[None]:
    """Have clients of `small` take part from this process while the block lasts, where only their server matters."""
    job = Job.load(directory / "small")
    clients = [
        Client(job, Executor(job, Site(name, job.contract.client_names)), GrpcConnection(f"localhost:{port}"))
        for name in names
    ]
    ended = [client.start() for client in clients]
    try:
        yield
    finally:
        for client in clients:
            client.stop()
        for end in ended:
            end.exception(60)


def read_until(process: "subprocess.Popen[str]", text: str) -> str:
    """Return what a process prints, up to the line that holds a text; fail if it ends before."""
    assert process.stdout is not None
    printed = ""
    for line in process.stdout:
        printed += line
        if text in line:
            return printed
    raise AssertionError(f"{text!r} was never printed:\n{printed}")


def alive_in_group(group: int) -> list[int]:
    """Return the processes of a process group that have not ended (zombies have)."""
    alive = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdecimal():
            continue
        try:
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(fields[2]) == group and fields[0] != "Z":
            alive.append(int(entry.name))
    return alive


def free_port() -> int:
    """Return a port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
