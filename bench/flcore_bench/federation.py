"""A federation over loopback for measurements: a fresh server process, synthetic clients in others, no training."""

import tempfile
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from flcore_kernels import warm

import flcore
from flcore_bench.internals import DEFAULT_BUDGET, Budget
from flcore_bench.process import ChildProcess
from flcore_bench.resources import cgroup_limit
from flcore_bench.shapes import spec_named

SYNTHETIC_JOB = Path(__file__).parent / "synthetic"
PROCESSES = 2
"""The largest number of client processes."""


@dataclass(frozen=True)
class FederationSpec:
    """A federation to run.

    Attributes:
        shape: The model's shape, a key of `SHAPES`.
        size: The model's size: bytes, or the divisor of all widths.
        clients: The number of clients.
        rounds: The number of rounds. The first warms up.
        accumulate: The accumulator of the sums.
        options: Options of `serve`.
        on_disk: Whether the server gets a directory to stage updates in.
        contract: Keys of job.toml that are replaced, table by table.
        memory_limit_bytes: The limit of the server's cgroup, where one can be created (0: none).
    """

    shape: str
    size: int
    clients: int = 4
    rounds: int = 4
    accumulate: str = "exact"
    options: Mapping[str, Any] = field(default_factory=dict)
    on_disk: bool = False
    contract: Mapping[str, Any] = field(default_factory=dict)
    memory_limit_bytes: int = 0

    @property
    def spec(self) -> flcore.ModelSpec:
        """The model's tensors."""
        return spec_named(self.shape, self.size)

    @property
    def model_bytes(self) -> int:
        """Bytes of the model's values, gaps included."""
        return self.spec.nbytes

    @property
    def memory_bound(self) -> int:
        """The peak memory in bytes that flcore states for this plan and budget. It does not depend on the clients."""
        budget = Budget(int(self.options.get("budget_bytes", DEFAULT_BUDGET.nbytes)))
        return budget.peak_bytes(str(self.options.get("plan", "batch")), self.spec, self.accumulate)

    @property
    def overrides(self) -> dict[str, Any]:
        """The keys of the synthetic job that are replaced."""
        given = {
            "seed": self.size,
            "clients": self.clients,
            "server": {
                "model": f"models.py:{self.shape}",
                "rounds": self.rounds,
                "accumulate": self.accumulate,
            },
        }
        kept = flcore.Job.load(SYNTHETIC_JOB).contract.model_dump(mode="json")
        merged = _merged(_merged(kept, given), self.contract)
        return {key: value for key, value in merged.items() if value != kept[key]}


@dataclass(frozen=True)
class Figures:
    """The figures of a run.

    Attributes:
        seconds: The duration of each round.
        phases: The duration of each phase, per round.
        bytes_sent: Bytes of pieces that the server sent in a round.
        bytes_received: Bytes of pieces that the server received in a round.
        peak_bytes: The server's peak memory.
        idle_bytes: The server's peak memory before the first task.
        disk_bytes: The server's peak disk usage.
        delivery_s: How long each round's task took to reach all clients.
        failed: Failures of clients, by reason.
        refused: Refused requests, by kind.
    """

    seconds: list[float]
    phases: dict[str, list[float]]
    bytes_sent: int
    bytes_received: int
    peak_bytes: int
    idle_bytes: int
    disk_bytes: int
    delivery_s: list[float]
    failed: dict[str, int]
    refused: dict[str, int]

    @property
    def bytes_per_round(self) -> int:
        """Bytes of pieces per round, in both directions."""
        return self.bytes_sent + self.bytes_received

    @property
    def failure_count(self) -> int:
        """Failures and refusals, over all rounds."""
        return sum(self.failed.values()) + sum(self.refused.values())


def run_federation(run: FederationSpec, threads: int) -> Figures:
    """Run a federation, and return its figures. Kernels are compiled before, as compiling takes memory."""
    for segment in run.spec.segments:
        compile_for(segment.dtype, threads)
    with ExitStack() as stack:
        options = dict(run.options)
        if run.on_disk:
            options["directory"] = stack.enter_context(tempfile.TemporaryDirectory(prefix="flcore-bench-"))
        job = {"directory": str(SYNTHETIC_JOB), "contract": run.overrides}
        setup = job | {"options": options, "wait_for": run.clients}
        group = stack.enter_context(cgroup_limit(run.memory_limit_bytes))
        server = stack.enter_context(ChildProcess("flcore_bench.synthetic_server", setup, threads, group))
        address = server.receive()["address"]
        names = flcore.Job.load(SYNTHETIC_JOB, **run.overrides).contract.client_names
        count = min(PROCESSES, len(names))
        clients = [
            stack.enter_context(
                ChildProcess(
                    "flcore_bench.synthetic_clients",
                    job | {"address": address, "names": names[number::count]},
                    threads,
                )
            )
            for number in range(count)
        ]
        figures, *client_reports = _final_messages([server, *clients])
    refused = sum((Counter(report["refused"]) for report in client_reports), Counter())
    return Figures(**figures, refused=dict(refused))


@cache
def compile_for(dtype: str, threads: int) -> None:
    """Compile the kernels for a dtype into the kernel cache, once per process."""
    for _ in warm([dtype], threads):
        pass


def _final_messages(processes: list[ChildProcess]) -> list[Any]:
    """Return the last message of every process. The first one that ends without a message fails the measurement."""
    pool = ThreadPoolExecutor(len(processes))
    try:
        futures = [pool.submit(process.receive) for process in processes]
        for future in as_completed(futures):
            future.result()
        return [future.result() for future in futures]
    finally:
        pool.shutdown(wait=False)


def _merged(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """Return a table with another's keys merged into it, recursively."""
    merged = dict(one)
    for key, value in other.items():
        kept = merged.get(key)
        merged[key] = _merged(kept, value) if isinstance(kept, Mapping) and isinstance(value, Mapping) else value
    return merged
