"""A federation of real processes that tests kill and start again: `flcore server`, `flcore client`, over gRPC."""

from collections import Counter
from pathlib import Path

from flcore.server.history import RoundRecord
from tests.faults.copied_runs import Asked, history_of
from tests.faults.logged_processes import LoggedProcesses, Process
from tests.flcore.processes import free_port

JOB = """
name = "killed"
clients = {clients}

[server]
model = "killed.py:initial_model"
rounds = {rounds}
quorum = {quorum}
quorum_retries = 100
{server}

[client]
executor = "killed.py:Client"

[tasks.train]
returns = "weights"

[tasks.validate]
returns = "metrics"
"""

CODE = """
import os
import time
import numpy as np
import flcore

ELEMENTS, TRAIN_S = {elements}, {train_s}

def initial_model(seed):
    return {{"w": np.ones(ELEMENTS, np.float32), "h": np.ones(300, np.float16)}}

def note(site, task):
    line = f"{{site.name}} {{task.name}} {{task.round}}\\n"
    with open(os.environ["EXECUTIONS"], "a") as file:
        file.write(line)

class Client:
    def __init__(self, site):
        self.site, self.weight = site, 1.0 + site.clients.index(site.name)

    def train(self, model, task):
        note(self.site, task)
        while task.round > int(open(os.environ["LAST_ROUND"]).read() or 0):
            time.sleep(0.05)
        time.sleep(TRAIN_S)
        draw = np.random.default_rng(task.seed)
        arrays = {{
            name: (array * 0.5 + draw.standard_normal(array.shape, np.float32)).astype(array.dtype)
            for name, array in model.items()
        }}
        return flcore.Update(arrays, weight=self.weight, metrics={{"loss": float(draw.random())}})

    def validate(self, model, task):
        note(self.site, task)
        return flcore.Update(weight=1.0, metrics={{"accuracy": task.round * 5 % 16 / 16}})
"""
"""The metric is a dyadic fraction and all weights are equal: its mean is the same over any of the clients."""


class RealFederation(LoggedProcesses):
    """One job, its server and its clients.

    Args:
        directory: An empty directory.
        clients: The names of the clients.
        rounds: The number of rounds.
        elements: The size of the model in float32 elements.
        server: More lines of the contract's table `[server]`.
        train_s: How long a training takes.
    """

    def __init__(
        self, directory: Path, clients: list[str], rounds: int, elements: int, server: str = "", train_s: float = 0.0
    ) -> None:
        super().__init__(directory)
        self.clients = clients
        self.job, self.out = directory / "job", directory / "out"
        self.job.mkdir()
        contract = JOB.format(clients=clients, rounds=rounds, quorum=len(clients), server=server)
        (self.job / "job.toml").write_text(contract)
        (self.job / "killed.py").write_text(CODE.format(elements=elements, train_s=train_s))
        self.port = free_port()
        self.allow_rounds(rounds)

    def allow_rounds(self, last: int) -> None:
        """Have clients wait before they train in a later round than this one."""
        partial = self.directory / "last-round.partial"
        partial.write_text(str(last))
        partial.replace(self.directory / "last-round")

    def run_undisturbed(self) -> Path:
        """Run the job within one process, and return its directory."""
        out = self.directory / "undisturbed"
        self.run_job(self.job, out)
        return out

    def start_server(self, *options: str, point: tuple[int, int, int] | None = None) -> Process:
        """Start the server. With a point (its place in the table, round and call), it is killed there."""
        module = ("flcore",) if point is None else ("tests.faults.killed_server", *map(str, point))
        address = ("--insecure", "--port", str(self.port), "--out", str(self.out))
        return self.start("server", *module, "server", str(self.job), *address, *options)

    def start_client(self, name: str) -> Process:
        """Start a client, which keeps its state in a directory."""
        address = ("--server", f"localhost:{self.port}", "--insecure")
        return self.start(
            name,
            "flcore",
            "client",
            str(self.job),
            "--name",
            name,
            "--state",
            str(self.directory / f"{name}-state"),
            *address,
        )

    def executions(self, name: str = "executions") -> Asked:
        """Return how often each task was executed."""
        path = self.directory / name
        lines = path.read_text().splitlines() if path.exists() else []
        parts = [line.split() for line in lines]
        return Counter((client, task, int(number)) for client, task, number in parts)

    def history(self) -> list[RoundRecord]:
        """Return the rounds in the history."""
        return history_of(self.out) if (self.out / "history.jsonl").exists() else []
