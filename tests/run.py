"""The test suite in lanes, which is what `make test` runs: `python -m tests.run [--lane LANE]... [pytest's options]`.

First the kernels are compiled, each once, by as many processes as there are cores. Then the parallel lane has two
workers more than cores. Tests that measure their own process or short times run after it, alone. `--lane device` runs
the CUDA kernels on the CPU emulation of a device. In CI (where `CI` is set) the order is drawn anew each time.
"""

import argparse
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree as ET

from flcore_kernels import KernelError
from flcore_kernels.cpu.compiler import cache_directory
from flcore_kernels.cpu.warm import compile_ahead
from flcore_kernels.threads import available_cores

from tests.kernels.needed import NEEDED

ELSEWHERE = "not gpu and not stress and not fuzz and not large and not browser"
WORKERS = ["-n", str(available_cores()), "--dist", "worksteal"]
MORE_WORKERS = ["-n", str(available_cores() + 2), "--dist", "worksteal"]
"""Tests of servers and clients wait for more than half of their time: for graces, deadlines and other processes."""

LANES = {
    "parallel": ["-m", f"not serial and not device and {ELSEWHERE}", *MORE_WORKERS],
    "serial": ["-m", f"serial and not device and {ELSEWHERE}"],
    "device": ["-m", f"device and {ELSEWHERE}", *WORKERS],
}
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
"""Other workers use the other cores: libraries that start a thread a core would get in each other's way."""

NO_TESTS = 5
"""Pytest's exit code where nothing was selected, as with `-k`."""


class Lane(NamedTuple):
    """How a lane ended: pytest's exit code, the counts of its report, and the seconds of each test."""

    code: int
    counts: dict[str, int]
    tests: dict[str, float]
    seconds: float


def compile_kernels() -> float:
    """Compile what the suite needs and is not on disk yet; return the seconds that it took."""
    began = time.monotonic()
    compiled = 0
    for done, count, key, was_needed in compile_ahead(NEEDED):
        compiled += was_needed
        if sys.stdout.isatty():
            print(f"\rkernels: {done} of {count} ({' '.join(key)})\033[K", end="\r", flush=True)
    seconds = time.monotonic() - began
    print(f"kernels: {len(NEEDED)} ready, {compiled} of them compiled now, in {seconds:.0f} s")
    return seconds


def run_lane(name: str, options: list[str], folder: Path) -> Lane:
    """Run pytest once, and read its report."""
    report = folder / f"{name}.xml"
    print(f"\n{name} lane", flush=True)
    began = time.monotonic()
    command = [sys.executable, "-m", "pytest", "-q", f"--junitxml={report}", *LANES[name], *options]
    environment = os.environ if name == "serial" else {**ONE_THREAD, **os.environ}
    code = subprocess.run(command, env=environment, check=False).returncode
    seconds = time.monotonic() - began
    if not report.exists():
        return Lane(code, {}, {}, seconds)
    (suite,) = ET.parse(report).getroot()
    counts = {kind: int(suite.get(kind, "0")) for kind in ("tests", "failures", "errors", "skipped")}
    tests = {
        f"{case.get('classname')}::{case.get('name')}": float(case.get("time", "0")) for case in suite.iter("testcase")
    }
    return Lane(code, counts, tests, seconds)


def kept() -> set[str]:
    """Return the names of the kernels that are compiled and kept."""
    directory = cache_directory()
    return {path.stem for path in directory.glob("*.nbc")} if directory else set()


def summary(lanes: dict[str, Lane], compiling_s: float, late: set[str]) -> str:
    """Return the slowest tests and modules, kernels that were not compiled ahead, and a line on the whole run."""
    tests = [(seconds, name) for lane in lanes.values() for name, seconds in lane.tests.items()]
    lines = ["", "slowest tests:", *(f"{seconds:7.1f} s  {name}" for seconds, name in sorted(tests, reverse=True)[:10])]
    modules: Counter[str] = Counter()
    for seconds, name in tests:
        modules[name.partition("::")[0]] += seconds  # type: ignore[assignment]
    lines += ["", "slowest modules:", *(f"{seconds:7.1f} s  {name}" for name, seconds in modules.most_common(20))]
    if late:
        lines += ["", f"compiled by tests, and not ahead (see tests/kernels/needed.py): {', '.join(sorted(late))}"]
    total = {
        kind: sum(lane.counts.get(kind, 0) for lane in lanes.values())
        for kind in ("tests", "skipped", "failures", "errors")
    }
    failed = total["failures"] + total["errors"]
    passed = total["tests"] - failed - total["skipped"]
    minutes, seconds = divmod(round(compiling_s + sum(lane.seconds for lane in lanes.values())), 60)
    parts = [f"kernels {compiling_s:.0f} s", *(f"{name} {lane.seconds:.0f} s" for name, lane in lanes.items())]
    told = [f"{failed} failed"] * bool(failed) + [f"{len(late)} kernels compiled late"] * bool(late)
    told += [f"{passed} passed", f"{total['skipped']} skipped"]
    return "\n".join([*lines, "", f"{', '.join(told)} in {minutes} min {seconds} s ({', '.join(parts)})"])


def main() -> int:
    """Run the lanes; return 0 if all is well."""
    parser = argparse.ArgumentParser(prog="python -m tests.run", description="Run the test suite in lanes.")
    parser.add_argument("--lane", action="append", choices=LANES, help="a lane to run (default: parallel, serial)")
    given, options = parser.parse_known_args()
    if "CI" in os.environ:
        options += ["--shuffle", str(random.SystemRandom().randrange(10_000))]
        print(f"in the order of {' '.join(options[-2:])}")
    compiling_s = compile_kernels()
    before = kept()
    with tempfile.TemporaryDirectory() as folder:
        lanes = {name: run_lane(name, options, Path(folder)) for name in given.lane or ["parallel", "serial"]}
    late = kept() - before
    print(summary(lanes, compiling_s, late))
    failed = [lane for lane in lanes.values() if lane.code not in (0, NO_TESTS)]
    return 1 if failed or late or all(lane.code == NO_TESTS for lane in lanes.values()) else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
    except KernelError as error:
        sys.exit(f"tests.run: {error}")
