"""A long federation over TLS, of which every round is sampled: a real server, and eight clients in two processes.

The server is `flcore server` as it is started by hand: receipts are for updates on the disk. A sample is taken when the
server's log says that a round is over. Figures of single samples differ by what is just in flight, so they are
compared by their medians over quarters of the run.
"""

import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from tests.flcore.processes import started

ROOT = Path(__file__).parents[2]
CLIENTS = tuple(f"site-{number}" for number in range(1, 9))
CLIENT_PROCESSES = 2
TICKS_PER_S = os.sysconf("SC_CLK_TCK")

JOB = """
name = "soak"
clients = {clients}

[server]
model = "soak.py:initial_model"
rounds = {rounds}
quorum = 8

[client]
executor = "soak.py"

[tasks.train]
returns = "weights"
"""

CODE = """
import numpy as np
import flcore

def initial_model(seed):
    return {{"w": np.zeros({parameters}, np.float32)}}

def train(model, task):
    return flcore.Update({{"w": model["w"] + np.float32(1.0)}}, weight=1.0, metrics={{"loss": 1.0 / task.round}})
"""


@dataclass(frozen=True)
class Usage:
    """What a process has at one moment.

    Attributes:
        pss_bytes: Its memory, with its share of what other processes have mapped too (PSS).
        heap_bytes: The part of it that is no file: what the process has allocated.
        threads: The number of its threads.
        descriptors: The number of its open files and sockets.
        cpu_s: Seconds of CPU since its start.
    """

    pss_bytes: int
    heap_bytes: int
    threads: int
    descriptors: int
    cpu_s: float

    @classmethod
    def of(cls, pid: int) -> "Usage":
        """Return what a process has now."""
        process = Path(f"/proc/{pid}")
        rollup, status = (process / "smaps_rollup").read_text(), (process / "status").read_text()
        times = (process / "stat").read_text().rpartition(")")[2].split()
        return cls(
            pss_bytes=_field(rollup, "Pss") * 1024,
            heap_bytes=_field(rollup, "Pss_Anon") * 1024,
            threads=_field(status, "Threads"),
            descriptors=sum(1 for _ in (process / "fd").iterdir()),
            cpu_s=(int(times[11]) + int(times[12])) / TICKS_PER_S,
        )


@dataclass(frozen=True)
class Sample:
    """One round. `files` has the bytes of each entry of the run's directory; those of a directory are summed."""

    round: int
    seconds: float
    server: Usage
    clients: tuple[Usage, ...]
    files: dict[str, int]

    def bytes_of(self, name: str) -> int:
        return self.files.get(name, 0)


def federation(folder: Path, rounds: int, model_bytes: int, report: Callable[[str], None], every: int) -> list[Sample]:
    """Run a job to its end; return a sample of each round. Every so many rounds, a line of figures is reported."""
    job, samples = folder / "soak", []
    job.mkdir()
    (job / "job.toml").write_text(JOB.format(clients=json.dumps(CLIENTS), rounds=rounds))
    (job / "soak.py").write_text(CODE.format(parameters=model_bytes // 4))
    _make_kits(folder)
    command = ("-m", "flcore", "server", "soak", "--host", "127.0.0.1", "--port", "0", "--log-format", "json")
    with ExitStack() as stack:
        server = stack.enter_context(started(*command, cwd=folder))
        events = _events(server)
        address = next(event["address"] for event in events if event["event"] == "listening")
        address = address.replace("127.0.0.1", "localhost")  # the name in the certificate
        processes = []
        for number in range(CLIENT_PROCESSES):
            kits = [str(folder / name) for name in CLIENTS[number::CLIENT_PROCESSES]]
            joining = ("-m", "tests.flcore.soak_clients", str(job), address, *kits)
            processes.append(stack.enter_context(started(*joining, cwd=ROOT)))
        for event in events:
            if event["event"] == "round_finished":
                assert len(event["record"]["updates"]) == len(CLIENTS) and not event["record"]["failed"], event
                if event["record"]["round"] == rounds:
                    break  # the processes are about to end
                samples.append(_sample(event["record"], server, processes, folder / "runs/soak"))
                if len(samples) % every == 0:
                    report(figures(samples[-every:]))
        for event in events:
            assert event["event"] in ("client_left", "done", "run_ended"), event
        assert server.wait(60) == 0
        assert [process.wait(60) for process in processes] == [0] * CLIENT_PROCESSES
    return samples


def figures(samples: Sequence[Sample]) -> str:
    """Return a line of figures of some rounds in a row: medians, and what their last sample has on the disk."""
    last, mib = samples[-1], 1 << 20

    def of(usages: Sequence[Usage]) -> str:
        return (
            f"{median(usage.pss_bytes for usage in usages) / mib:.1f} MiB "
            f"(at most {max(usage.pss_bytes for usage in usages) / mib:.1f}), heap "
            f"{median(usage.heap_bytes for usage in usages) / mib:.1f}, "
            f"{median(usage.threads for usage in usages):g} threads, "
            f"{median(usage.descriptors for usage in usages):g} descriptors"
        )

    cpu_s = (last.server.cpu_s - samples[0].server.cpu_s) / max(1, len(samples) - 1)
    clients = "; ".join(of([sample.clients[number] for sample in samples]) for number in range(CLIENT_PROCESSES))
    files = ", ".join(f"{name} {nbytes / mib:.2f}" for name, nbytes in sorted(last.files.items()) if nbytes)
    return (
        f"rounds {samples[0].round} to {last.round}: {median(sample.seconds for sample in samples):.3f} s, server "
        f"{cpu_s:.3f} s of CPU, {of([sample.server for sample in samples])}; clients {clients}; MiB of files: {files}"
    )


def _sample(
    record: dict[str, Any],
    server: "subprocess.Popen[str]",
    clients: Sequence["subprocess.Popen[str]"],
    directory: Path,
) -> Sample:
    usages = tuple(Usage.of(process.pid) for process in clients)
    files = {entry.name: _bytes_at(entry) for entry in directory.iterdir()}
    return Sample(record["round"], record["seconds"]["round"], Usage.of(server.pid), usages, files)


def _field(text: str, name: str) -> int:
    """Return the number of a line such as `Threads:  20` in a file of /proc."""
    return next(int(line.split()[1]) for line in text.splitlines() if line.startswith(f"{name}:"))


def _bytes_at(entry: Path) -> int:
    """Return the bytes of a file, or of all files in a directory. Files may vanish meanwhile."""
    total = 0
    with suppress(FileNotFoundError):
        for path in [entry, *entry.rglob("*")]:
            with suppress(FileNotFoundError):
                total += 0 if path.is_dir() else path.stat().st_size
    return total


def _events(server: "subprocess.Popen[str]") -> Iterator[dict[str, Any]]:
    """Yield the events of a server's log, to its end."""
    assert server.stdout is not None
    for line in server.stdout:
        assert line.startswith("{"), line
        yield json.loads(line)


def _make_kits(folder: Path) -> None:
    """Make the certificates of the server and the unpacked kit of each client."""
    for command in (("init", "soak", "--host", "localhost"), ("issue", *CLIENTS, "--address", "localhost:8470")):
        subprocess.run([sys.executable, "-m", "flcore", "certs", *command], cwd=folder, check=True, capture_output=True)
    for name in CLIENTS:
        with zipfile.ZipFile(folder / f"certs/kits/{name}.zip") as kit:
            kit.extractall(folder)
        (folder / name / "client.key").chmod(0o600)  # as `unzip` does
