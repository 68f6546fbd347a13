"""One federation over loopback, measured: a fresh server process, processes with synthetic clients, and no training."""

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
from flcore_bench.confinement import confinement
from flcore_bench.process import Process
from flcore_bench.shapes import spec_named

JOB = Path(__file__).parent / "synthetic"
PROCESSES = 2
"""Client processes, at most."""


@dataclass(frozen=True)
class Federated:
    """What is run: a shape of `SHAPES` at a size, clients, rounds (the first warms up), and the server's options.

    `options` go to `serve` as they are; `on_disk` gives it a directory of its own beside them. `contract` has keys of
    job.toml that are replaced, table by table. `memory_limit` confines the server to so many bytes, where that can be
    done (0: not).
    """

    shape: str
    size: int
    clients: int = 4
    rounds: int = 4
    accumulate: str = "exact"
    options: Mapping[str, Any] = field(default_factory=dict)
    on_disk: bool = False
    contract: Mapping[str, Any] = field(default_factory=dict)
    memory_limit: int = 0

    @property
    def spec(self) -> flcore.ModelSpec:
        """The model's tensors."""
        return spec_named(self.shape, self.size)

    @property
    def model_bytes(self) -> int:
        """Bytes of the model's values, gaps included."""
        return self.spec.nbytes

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
        kept = flcore.Job.load(JOB).contract.model_dump(mode="json")
        merged = _merged(_merged(kept, given), self.contract)
        return {key: value for key, value in merged.items() if value != kept[key]}


@dataclass(frozen=True)
class Figures:
    """What a run took: seconds per round and phase, bytes of pieces per round, memory and disk of the server.

    `idle_bytes` is its peak before the first task, `reached_s` how long each round's task took to reach all clients;
    `failed` counts clients' failures by reason, `refused` what the server said no to.
    """

    seconds: list[float]
    phases: dict[str, list[float]]
    bytes_sent: int
    bytes_received: int
    peak_bytes: int
    idle_bytes: int
    disk_bytes: int
    reached_s: list[float]
    failed: dict[str, int]
    refused: dict[str, int]

    @property
    def bytes_per_round(self) -> int:
        """Bytes of pieces that moved in one round, both ways."""
        return self.bytes_sent + self.bytes_received

    @property
    def losses(self) -> int:
        """How many clients failed or were refused, over all rounds."""
        return sum(self.failed.values()) + sum(self.refused.values())


def measured(run: Federated, threads: int) -> Figures:
    """Run a federation, and return what it took. Kernels are compiled beforehand, which takes memory of its own."""
    for segment in run.spec.segments:
        compile_for(segment.dtype, threads)
    with ExitStack() as stack:
        options = dict(run.options)
        if run.on_disk:
            options["directory"] = stack.enter_context(tempfile.TemporaryDirectory(prefix="flcore-bench-"))
        job = {"directory": str(JOB), "contract": run.overrides}
        setup = job | {"options": options, "wait_for": run.clients}
        group = stack.enter_context(confinement(run.memory_limit))
        server = stack.enter_context(Process("flcore_bench.synthetic_server", setup, threads, group))
        address = server.answer()["address"]
        names = flcore.Job.load(JOB, **run.overrides).contract.client_names
        count = min(PROCESSES, len(names))
        clients = [
            stack.enter_context(
                Process(
                    "flcore_bench.synthetic_clients",
                    job | {"address": address, "names": names[number::count]},
                    threads,
                )
            )
            for number in range(count)
        ]
        figures, *hosted = _answers([server, *clients])
    refused = sum((Counter(answer["refused"]) for answer in hosted), Counter())
    return Figures(**figures, refused=dict(refused))


@cache
def compile_for(dtype: str, threads: int) -> None:
    """Have the kernels for a dtype compiled and kept; once."""
    for _ in warm([dtype], threads):
        pass


def _answers(processes: list[Process]) -> list[Any]:
    """Return what all say at their end; the first that ends without a word ends the measurement."""
    pool = ThreadPoolExecutor(len(processes))
    try:
        futures = [pool.submit(process.answer) for process in processes]
        for future in as_completed(futures):
            future.result()
        return [future.result() for future in futures]
    finally:
        pool.shutdown(wait=False)


def _merged(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """Return one table with another's keys over it, tables within them alike."""
    merged = dict(one)
    for key, value in other.items():
        kept = merged.get(key)
        merged[key] = _merged(kept, value) if isinstance(kept, Mapping) and isinstance(value, Mapping) else value
    return merged
