"""`flcore bench round`: whole rounds over loopback, and the goals of each case at full scale."""

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import flcore
from flcore_bench.case import Case, rows_of
from flcore_bench.goals import (
    check_share,
    disk_usage,
    idle_memory,
    no_failures,
    over_hardware_floor,
    peak_memory,
    relative_throughput,
    speedup_over,
    task_delivery,
    within_memory_bound,
)
from flcore_bench.report import Row
from flcore_bench.resources import peak_bytes

ECHO_JOB = Path(__file__).parent / "echo"
SIZES_MB = {"small": 64, "full": 512}
MB, MIB, GIB = 10**6, 2**20, 2**30
ROUND_SIZES = (64 * MB, 512 * MB)
FLOAT32 = "streaming in memory, float32"
FEW = "streaming, 4 clients"

PAUSE = {"tasks": {"train": {"hyperparameters": {"pause_s": 4.0}}}}
"""Clients answer 4 s after they received the task. By then, all have it."""

ROUND_CASES = [
    Case(FLOAT32, ROUND_SIZES, plan="streaming", accumulate="float32", goals=[peak_memory(3.0e9), check_share(0.10)]),
    Case("streaming in memory, exact", ROUND_SIZES, plan="streaming", goals=[peak_memory(4.5e9), check_share(0.10)]),
    Case(
        "bfloat16 on the wire",
        ROUND_SIZES,
        plan="streaming",
        accumulate="float32",
        contract={"wire": {"download": "bfloat16", "upload": "bfloat16"}},
        goals=[speedup_over(FLOAT32, 1.6)],
    ),
    Case(
        "bfloat16 down, int8 differences up",
        ROUND_SIZES,
        plan="streaming",
        accumulate="float32",
        contract={"wire": {"download": "bfloat16", "upload": "int8[256]"}, "tasks": {"train": {"returns": "delta"}}},
        goals=[speedup_over(FLOAT32, 2.3)],
    ),
    Case(
        "batch, from disk",
        ROUND_SIZES,
        on_disk=True,
        is_rated=True,
        goals=[over_hardware_floor(1.3), peak_memory(1.45e9), check_share(0.10)],
    ),
    Case(
        "batch, GPT-2 Large shapes",
        (8, 1),
        shape="gpt2_large",
        clients=(3, 6),
        rounds=(2, 4),
        on_disk=True,
        is_rated=True,
        goals=[over_hardware_floor(1.3)],
        note="3.10 GB at full scale; 3.35 GB where the tied head is sent twice, as NVFLARE does",
    ),
    Case(
        "batch, Llama-3.2-3B shapes",
        (16, 1),
        shape="llama_3b",
        rounds=(2, 3),
        budgets=(64 * MIB, 512 * MIB),
        on_disk=True,
        goals=[peak_memory(0.9 * GIB), disk_usage(4 + 3)],
    ),
    Case(FEW, (4 * MB, 16 * MB), plan="streaming", rounds=(4, 11)),
    Case(
        "streaming, many clients",
        (4 * MB, 16 * MB),
        plan="streaming",
        clients=(40, 400),
        rounds=(2, 4),
        goals=[within_memory_bound(), no_failures(), relative_throughput(FEW, 0.7)],
    ),
    Case(
        "idle clients",
        (1024, 1024),
        clients=(50, 1000),
        rounds=(2, 4),
        contract=PAUSE,
        goals=[idle_memory(300 * MB), task_delivery(2.0), no_failures()],
        note="clients answer 4 s after the task, when all have it",
    ),
]
"""In this order: a goal may refer to an earlier case."""


@dataclass(frozen=True)
class RoundFigures:
    """Seconds per round, bytes transferred per round, and the server process's peak resident memory in bytes."""

    clients: int
    megabytes: int
    seconds: list[float]
    bytes_per_round: int
    server_peak_bytes: int

    @property
    def bytes_per_s(self) -> float:
        """Bytes transferred per second, in the median round."""
        return self.bytes_per_round / median(self.seconds)


def round_benchmark(scale: str, clients: int = 4, rounds: int = 5) -> RoundFigures:
    """Run rounds of a float32 model of 64 MB (small) or 512 MB (full), and measure all but the first."""
    setup = {"clients": clients, "rounds": rounds + 1, "megabytes": SIZES_MB[scale]}
    command = [sys.executable, "-c", "from flcore_bench.round import main; main()", json.dumps(setup)]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)  # noqa: S603 - this very file
    return RoundFigures(**json.loads(done.stdout))


def round_rows(scale: str, threads: int) -> list[Row]:
    """Measure rounds of flcore's real clients, and then every case with synthetic ones."""
    return [round_row(scale), *rows_of(ROUND_CASES, scale, threads)]


def round_row(scale: str) -> Row:
    """Measure rounds of flcore's real clients. The row's bytes are those that were transferred."""
    figures = round_benchmark(scale)
    return Row(
        f"round, {figures.megabytes} MB x {figures.clients} clients",
        figures.seconds,
        figures.bytes_per_round,
        note=f"server's peak {figures.server_peak_bytes / 1e6:,.0f} MB",
    )


def main() -> None:
    """Run the rounds as the server process, and print the figures as JSON."""
    setup = json.loads(sys.argv[1])
    job = flcore.Job.load(ECHO_JOB, clients=setup["clients"], rounds=setup["rounds"], seed=setup["megabytes"])
    history, _ = flcore.run(job, workers=2)
    measured = history[1:]
    figures = {
        "clients": setup["clients"],
        "megabytes": setup["megabytes"],
        "seconds": [record.seconds["round"] for record in measured],
        "bytes_per_round": measured[0].bytes_sent + measured[0].bytes_received,
        "server_peak_bytes": peak_bytes(),
    }
    print(json.dumps(figures))
