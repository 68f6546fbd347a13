"""`flcore bench processes`: rounds of `flcore server` and `flcore client`, in plaintext and with TLS in turn."""

import json
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median

from flcore_bench.process import MeasurementFailed, benchmark_environment
from flcore_bench.report import Goal, Row
from flcore_bench.round import ECHO_JOB, MB, SIZES_MB

CLIENTS = ("a", "b", "c", "d")
ROUNDS = {"small": 3, "full": 4}
REPETITIONS = {"small": 1, "full": 3}
"""How often each side is run, in turn with the other one, each time with fresh processes."""

TLS_GOAL = 1.35
END_TIMEOUT_S = 600.0


def process_rows(scale: str, threads: int) -> list[Row]:
    """Measure rounds with the plan "batch". The rows' bytes are those that were transferred in a round."""
    seconds: dict[str, list[float]] = {"plaintext": [], "mutual TLS": []}
    for _ in range(REPETITIONS[scale]):
        for side in seconds:
            with tempfile.TemporaryDirectory(prefix="flcore-bench-") as directory:
                seconds[side] += _rounds(Path(directory), scale, threads, has_tls=side == "mutual TLS")
    ratio = median(seconds["mutual TLS"]) / median(seconds["plaintext"])
    moved = 2 * len(CLIENTS) * SIZES_MB[scale] * MB
    name = f"processes, {SIZES_MB[scale]} MB x {len(CLIENTS)} clients, "
    return [
        Row(f"{name}plaintext", seconds["plaintext"], moved),
        Row(
            f"{name}mutual TLS",
            seconds["mutual TLS"],
            moved,
            against={"plaintext": ratio},
            goals=[Goal("time of plaintext", ratio, TLS_GOAL, is_at_least=False)] if scale == "full" else [],
        ),
    ]


def _rounds(directory: Path, scale: str, threads: int, *, has_tls: bool) -> list[float]:
    """Return the seconds of all rounds but the first, of a fresh server and fresh clients."""
    _write_job(directory / "echo", scale)
    if has_tls:
        _make_kits(directory)
    environment, plaintext = benchmark_environment(threads), [] if has_tls else ["--insecure"]
    with ExitStack() as stack:
        command = ["server", "echo", "--port", "0", "--host", "127.0.0.1", "--log-format", "json", *plaintext]
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
