"""Start-up time: the first use with an empty kernel cache, a new process with a full one, and the imports."""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from flcore_bench.report import Goal, Row
from flcore_bench.workload import Sizes

USE_PROGRAM = """
import numpy as np
import flcore
updates = [({"model": np.full(125_000, float(k), np.float32)}, 1) for k in (1, 2)]
assert flcore.aggregate(updates)["model"][0] == 1.5
"""
"""Import flcore and aggregate two updates of half a megabyte."""

IMPORT_PROGRAM = """
import time
started = time.perf_counter()
import {package}
print(time.perf_counter() - started)
"""


def cold_start_rows(sizes: Sizes) -> list[Row]:
    """Measure in new processes: whole processes from outside, imports from inside."""
    with tempfile.TemporaryDirectory() as cache:
        first = [_process_seconds(Path(cache) / str(number)) for number in range(sizes.first_uses)]
        warm = [_process_seconds(Path(cache) / "0") for _ in range(sizes.rounds)]
    return [
        Row(
            "first use ever, empty cache, whole process",
            first,
            goals=[_at_most(first, 5.0)],
            note=f"median of {len(first)}",
        ),
        Row("warm start, import and fold 1 MB, whole process", warm, goals=[_at_most(warm, 0.8)]),
        *(_import_row(package, sizes.rounds) for package in ("flcore_kernels", "flcore")),
    ]


def _import_row(package: str, rounds: int) -> Row:
    taken = [float(_stdout_of(IMPORT_PROGRAM.format(package=package), {})) for _ in range(rounds)]
    return Row(f"import {package}", taken, goals=[_at_most(taken, 0.3)])


def _process_seconds(cache: Path) -> float:
    started = time.perf_counter()
    _stdout_of(USE_PROGRAM, {"FLCORE_CACHE_DIR": str(cache)})
    return time.perf_counter() - started


def _stdout_of(program: str, environment: dict[str, str]) -> str:
    command = [sys.executable, "-c", program]
    return subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True, env=os.environ | environment).stdout  # noqa: S603 - our own program


def _at_most(taken: list[float], bound: float) -> Goal:
    return Goal("seconds", Row("", taken).median_s, bound, is_at_least=False, unit=" s")
