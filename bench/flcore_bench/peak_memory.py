"""A fresh process that does one job and reports its peak memory, for the tests that hold flcore to its bounds."""

from collections.abc import Callable
from typing import Any

from flcore_transport import GrpcConnection

import flcore
from flcore_bench.internals import Budget, Client, Executor, Site, aggregate_checkpoints
from flcore_bench.process import receive_setup, send_to_parent
from flcore_bench.resources import peak_bytes


def run_client(setup: dict[str, Any]) -> None:
    """Take part in the setup's job as its first client, until the server says goodbye."""
    job = flcore.Job.load(setup["directory"], **setup["contract"])
    name = job.contract.client_names[0]
    executor = Executor(job, Site(name, (name,), job.contract.seed))
    Client(job, executor, GrpcConnection(setup["address"])).start().result()


def aggregate_files(setup: dict[str, Any]) -> None:
    """Aggregate the setup's checkpoints into one file, with the setup's memory budget."""
    aggregate_checkpoints(setup["paths"], setup["out"], budget=Budget.parse(setup.get("budget", "64MiB")))


JOBS: dict[str, Callable[[dict[str, Any]], None]] = {"client": run_client, "aggregate": aggregate_files}
"""By the setup's `kind`."""


def main() -> None:
    """Do the setup's job, and send this process's peak memory to the parent."""
    setup = receive_setup()
    JOBS[setup["kind"]](setup)
    send_to_parent({"peak_bytes": peak_bytes()})
