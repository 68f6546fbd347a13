"""A standing federation of real processes that tests kill and start again: its server, its agents, its leads' calls."""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.faults.logged_processes import LoggedProcesses, Process
from tests.faults.real_federation import CODE, JOB
from tests.flcore.processes import free_port


class StandingFederation(LoggedProcesses):
    """A server without a job, an agent for each client, and one job directory.

    Args:
        directory: An empty directory.
        clients: The names of the clients.
        rounds: The number of rounds of each job.
        elements: The size of the model in float32 elements.
        train_s: How long a training takes.
        slots: How many jobs run at a time.
    """

    def __init__(
        self, directory: Path, clients: Sequence[str], rounds: int, elements: int, train_s: float, slots: int
    ) -> None:
        super().__init__(directory)
        self.clients, self.slots = list(clients), slots
        self.job = directory / "jobs/killed"
        self.job.mkdir(parents=True)
        contract = JOB.format(clients=self.clients, rounds=rounds, quorum=len(clients), server='best = "accuracy:max"')
        (self.job / "job.toml").write_text(contract)
        (self.job / "killed.py").write_text(CODE.format(elements=elements, train_s=train_s))
        (directory / "last-round").write_text("1000000")
        self.port = free_port()

    def start_server(self) -> Process:
        """Start the server."""
        options = ("--insecure", "--port", str(self.port), "--out", "federation", "--jobs", str(self.slots))
        return self.start("server", "flcore", "server", *options)

    def start_agent(self, name: str) -> Process:
        """Start the agent of a client, which runs the job that lies in its directory."""
        address = ("--server", f"localhost:{self.port}", "--insecure", "--name", name)
        return self.start(name, "flcore", "client", *address, "--jobs-dir", "jobs", "--state", f"{name}-agent")

    def ask(self, *arguments: str) -> Any:
        """Run a lead's command. Returns its JSON."""
        command = [sys.executable, "-m", "flcore", *arguments, "--json", "--insecure", "--server"]
        ran = subprocess.run(
            [*command, f"localhost:{self.port}"],
            env=self.environment("executions"),
            cwd=self.directory,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert ran.returncode == 0, ran.stderr + ran.stdout
        return json.loads(ran.stdout)

    def run_undisturbed(self, seed: int) -> dict[str, bytes]:
        """Run the job with a seed within one process. Returns its models, by file name."""
        out = self.directory / f"undisturbed-{seed}"
        self.run_job(self.job, out, "--seed", str(seed))
        return models_in(out)

    def models_of(self, job_id: str) -> dict[str, bytes]:
        """Return the models of a job in the federation, by file name."""
        return models_in(self.directory / "federation/jobs" / job_id / "run")


def models_in(directory: Path) -> dict[str, bytes]:
    """Return the published models in a run's directory, by file name."""
    return {path.name: path.read_bytes() for path in directory.glob("*.safetensors")}


def children_of(pid: int) -> list[int]:
    """Return the processes that a process has started and that live: a job's, and an idle one."""
    tasks = Path(f"/proc/{pid}/task")
    try:
        lists = [(task / "children").read_text().split() for task in tasks.iterdir()]
    except FileNotFoundError:
        return []
    return sorted({int(child) for found in lists for child in found})
