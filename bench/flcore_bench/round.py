"""`flcore bench round`: whole rounds over loopback, a server process and client processes, no training.

The first row is of flcore's own clients, in two worker processes, which answer with the model they were sent; those of
`round_cases` are of synthetic ones, which leave the machine to the server. Each server runs in a fresh process of its
own, so that its peak memory is the server's alone.
"""

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import flcore
from flcore_bench.case import rows_of
from flcore_bench.machine import peak_bytes
from flcore_bench.round_cases import ROUND_CASES
from flcore_bench.row import Row

JOB = Path(__file__).parent / "echo"
SIZES_MB = {"small": 64, "full": 512}


@dataclass(frozen=True)
class RoundFigures:
    """Seconds per round, bytes moved per round, and the server process's peak resident memory in bytes."""

    clients: int
    megabytes: int
    seconds: list[float]
    bytes_per_round: int
    server_peak_bytes: int

    @property
    def bytes_per_s(self) -> float:
        """Bytes moved per second, in the median round."""
        return self.bytes_per_round / median(self.seconds)


def round_benchmark(scale: str, clients: int = 4, rounds: int = 5) -> RoundFigures:
    """Run rounds of a float32 model of 64 MB (small) or 512 MB (full), and measure all but the first."""
    setup = {"clients": clients, "rounds": rounds + 1, "megabytes": SIZES_MB[scale]}
    command = [sys.executable, "-c", "from flcore_bench.round import main; main()", json.dumps(setup)]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)  # noqa: S603 - this very file
    return RoundFigures(**json.loads(done.stdout))


def round_rows(scale: str, threads: int) -> list[Row]:
    """Measure a round of flcore's own clients, and then every case."""
    return [round_row(scale), *rows_of(ROUND_CASES, scale, threads)]


def round_row(scale: str) -> Row:
    """Return the figures as a row: bytes are those that moved."""
    figures = round_benchmark(scale)
    return Row(
        f"round, {figures.megabytes} MB x {figures.clients} clients",
        figures.seconds,
        figures.bytes_per_round,
        note=f"server's peak {figures.server_peak_bytes / 1e6:,.0f} MB",
    )


def main() -> None:
    """Be the server process: run the rounds, and print the figures."""
    setup = json.loads(sys.argv[1])
    job = flcore.Job.load(JOB, clients=setup["clients"], rounds=setup["rounds"], seed=setup["megabytes"])
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
