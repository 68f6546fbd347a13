"""`flcore bench processes`: rounds of `flcore server` and `flcore client`, at the price of TLS and of durability.

All sides are measured in turn in one run: plaintext and mutual TLS, receipts for updates in memory and on the disk.
Before each side with `disk`, the disk alone writes the bytes of a round's updates, on the same file system.
"""

import json
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median
from typing import NamedTuple

from flcore_bench.process import MeasurementFailed, benchmark_environment
from flcore_bench.rates import synced_write_s
from flcore_bench.report import Goal, Row, ratio
from flcore_bench.round import ECHO_JOB, MB, SIZES_MB

CLIENTS = ("a", "b", "c", "d")
ROUNDS = {"small": 3, "full": 4}
REPETITIONS = {"small": 1, "full": 3}
"""How often each side is run, in turn with the other ones, each time with fresh processes."""

TLS_GOAL = 1.35
DURABILITY_GOAL = 1.10
END_TIMEOUT_S = 600.0


class Side(NamedTuple):
    """One way to serve the job."""

    transport: str
    durability: str

    @property
    def name(self) -> str:
        """The name in the table."""
        return f"{self.transport}, {self.durability}"


PLAINTEXT, TLS = "plaintext", "mutual TLS"
SIDES = [Side(transport, durability) for transport in (PLAINTEXT, TLS) for durability in ("memory", "disk")]


def process_rows(scale: str, threads: int, minutes: float | None = None) -> list[Row]:
    """Measure rounds with the plan "batch". The bytes of a round's row are those that were transferred in it.

    Args:
        scale: "small" or "full".
        threads: Threads of flcore in each process.
        minutes: Repeat all sides as often as this time allows, and at least once. Default: None, by the scale.

    Returns:
        A row for each side, and one for the disk alone.
    """
    update_bytes = len(CLIENTS) * SIZES_MB[scale] * MB
    seconds: dict[Side, list[float]] = {side: [] for side in SIDES}
    written_s: list[float] = []
    for number in repetitions(REPETITIONS[scale], minutes):
        for side in SIDES if number % 2 else reversed(SIDES):
            with tempfile.TemporaryDirectory(prefix="flcore-bench-") as directory:
                if side.durability == "disk":
                    written_s.append(synced_write_s(Path(directory), update_bytes))
                seconds[side] += measure_rounds(Path(directory), scale, threads, side)
    name = f"processes, {SIZES_MB[scale]} MB x {len(CLIENTS)} clients, "
    rows = [_row(name, side, seconds, written_s, 2 * update_bytes, has_goals=scale == "full") for side in SIDES]
    alone = Row(
        f"the disk alone, {update_bytes // MB:,} MB", written_s, update_bytes, note="written to one file, then fsync"
    )
    return [*rows, alone]


def repetitions(count: int, minutes: float | None, now: Callable[[], float] = time.monotonic) -> Iterator[int]:
    """Yield 1, 2, and so on: `count` times, or as long as another one fits into the time, by the longest so far."""
    began, longest_s, number = now(), 0.0, 1
    while True:
        started = now()
        yield number
        longest_s = max(longest_s, now() - started)
        if number >= count if minutes is None else now() - began + longest_s > 60 * minutes:
            return
        number += 1


def _row(
    name: str, side: Side, seconds: dict[Side, list[float]], written_s: list[float], moved: int, *, has_goals: bool
) -> Row:
    """Return the row of a side: against plaintext, and with `disk` against memory and the disk alone."""
    own, memory = seconds[side], seconds[Side(side.transport, "memory")]
    against, goals, note = {}, [], ""
    if side.transport == TLS:
        against[PLAINTEXT] = ratio(own, seconds[Side(PLAINTEXT, side.durability)])
        if side.durability == "memory":
            goals.append(Goal("time of plaintext", against[PLAINTEXT], TLS_GOAL, is_at_least=False))
    if side.durability == "disk":
        against |= {"memory": ratio(own, memory), "the disk alone": ratio(own, written_s)}
        longer_s = max(median(memory), median(written_s))
        goals.append(Goal("time of the longer of these", median(own) / longer_s, DURABILITY_GOAL, is_at_least=False))
        note = f"{median(own) - longer_s:+.2f} s beyond the longer of memory and the disk alone"
    return Row(f"{name}{side.name}", own, moved, against=against, goals=goals if has_goals else [], note=note)


def measure_rounds(directory: Path, scale: str, threads: int, side: Side) -> list[float]:
    """Return the seconds of all rounds but the first, of a fresh server and fresh clients."""
    _write_job(directory / "echo", scale)
    has_tls = side.transport == TLS
    if has_tls:
        _make_kits(directory)
    environment, plaintext = benchmark_environment(threads), [] if has_tls else ["--insecure"]
    with ExitStack() as stack:
        command = ["server", "echo", "--port", "0", "--host", "127.0.0.1", "--log-format", "json", *plaintext]
        command += ["--plan", "batch", "--durability", side.durability]
        server = stack.enter_context(_started(directory, environment, *command))
        address = _address(server)
        for client in CLIENTS:
            identity = ["--kit", client] if has_tls else ["--name", client, "--insecure"]
            joining = ["client", "echo", "--server", address, *identity]
            stack.enter_context(_started(directory, environment, *joining))
        printed = server.communicate(timeout=END_TIMEOUT_S)[0]
        if server.returncode:
            raise MeasurementFailed(f"the server ended with code {server.returncode}: {printed[-2000:]}")
    history = (directory / "runs/echo/history.jsonl").read_text().splitlines()
    return [json.loads(line)["seconds"]["round"] for line in history[1:]]


def _make_kits(directory: Path) -> None:
    """Make a federation's certificates, and the unpacked kit of each client."""
    for command in (["init", "bench", "--host", "localhost"], ["issue", *CLIENTS]):
        subprocess.run(  # noqa: S603 - our own
            [sys.executable, "-m", "flcore", "certs", *command], cwd=directory, check=True, stdout=subprocess.DEVNULL
        )
    for client in CLIENTS:
        with zipfile.ZipFile(directory / f"certs/kits/{client}.zip") as kit:
            kit.extractall(directory)
        (directory / client / "client.key").chmod(0o600)  # which zipfile does not restore


def _write_job(job: Path, scale: str) -> None:
    """Write the echo job with this scale's size and rounds."""
    shutil.copytree(ECHO_JOB, job, ignore=shutil.ignore_patterns("__pycache__"))
    contract = (job / "job.toml").read_text()
    for old, new in (("seed = 64", f"seed = {SIZES_MB[scale]}"), ("rounds = 6", f"rounds = {ROUNDS[scale] + 1}")):
        contract = contract.replace(old, new)
    (job / "job.toml").write_text(contract)


@contextmanager
def _started(directory: Path, environment: dict[str, str], *command: str) -> "Iterator[subprocess.Popen[str]]":
    """A command of flcore while the block lasts; it is ended with it."""
    process = subprocess.Popen(  # noqa: S603 - our own
        [sys.executable, "-m", "flcore", *command],
        cwd=directory,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        yield process
    finally:
        process.terminate()
        process.communicate()


def _address(server: "subprocess.Popen[str]") -> str:
    """Return the address that a server's log names."""
    if server.stdout is not None:
        for line in server.stdout:
            event = json.loads(line)
            if event.get("event") == "listening":
                return str(event["address"]).replace("127.0.0.1", "localhost")
    raise MeasurementFailed("the server ended before it listened")
