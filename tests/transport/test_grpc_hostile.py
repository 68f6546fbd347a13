"""Hostile peers over TLS: an honest client goes on, and the server's memory stays within a bound.

The bound is the peak of the server before the attack, with the honest client's own transfers, and:

- for each connection at a time, `CONNECTION_BYTES`, as in the memory formula;
- for each call at a time, `CALL_BYTES`: objects of gRPC and Python; a connection has `MAX_STREAMS`;
- for each unfinished message of the attacker's calls or asks, of which it has so many, the largest message;
- `UNAUTHENTICATED_BYTES` for joins that are being read (docs/memory.md);
- `SLACK_BYTES` for the allocator.
"""

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import pytest
from flcore_transport import (
    CONNECTION_BYTES,
    MAX_CONNECTIONS,
    UNAUTHENTICATED_BYTES,
    DownloadRequest,
    Failure,
    FromServer,
    GrpcConnection,
    Join,
    Receipt,
    TlsKeys,
    Welcome,
)
from flcore_transport.client_limits import MAX_ASKS_PER_CALLER, MAX_CALLS_PER_CLIENT
from flcore_transport.framing import MAX_PIECE_BYTES
from flcore_transport.grpc_channel import MAX_STREAMS

from tests.transport.certificates import SERVER, TestAuthority

CALL_BYTES, SLACK_BYTES = 32 << 10, 24 << 20
FLOOD_SLACK_BYTES = 8 << 20


class Load(NamedTuple):
    """An attack: how many in the small form and in the full one, and what the server holds for it at a time.

    Connections are counted by the attack; `connections` is the most that are open at a time.
    """

    attack: str
    small: int
    full: int
    connections: int
    calls: int = 0
    messages: int = 0


LOADS = [
    Load("idle_handshakes", 100, 1_000, 1_000),
    Load("half_sent_headers", 40, 200, 200),
    Load("ping_flood", 20_000, 1_000_000, 20),
    Load("rapid_resets", 2_000, 100_000, 20, calls=MAX_STREAMS),
    Load("many_streams", 1_000, 10_000, 20, calls=MAX_STREAMS),
    Load("announced_4_gb", 160, 1_600, 100, calls=MAX_STREAMS),
    Load("unfinished_joins", 64, 320, 20, calls=MAX_STREAMS, messages=MAX_CALLS_PER_CLIENT),
    Load("unfinished_uploads", 64, 320, 20, calls=MAX_STREAMS, messages=MAX_CALLS_PER_CLIENT),
    Load("unfinished_asks", 64, 320, 20, calls=MAX_STREAMS, messages=MAX_ASKS_PER_CALLER),
    Load("join_flood", 500, 20_000, 50, calls=MAX_STREAMS),
    Load("ask_flood", 500, 20_000, 50, calls=MAX_STREAMS, messages=MAX_ASKS_PER_CALLER),
]


@dataclass
class Target:
    """A server in a process of its own, and an honest client of it."""

    keys: Path
    address: str
    process: "subprocess.Popen[str]"
    honest: TlsKeys
    sessions: list[tuple[GrpcConnection, Iterator[FromServer]]] = field(default_factory=list)

    def resident_bytes(self, name: str = "VmRSS") -> int:
        lines = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))

    def reset_peak(self) -> None:
        Path(f"/proc/{self.process.pid}/clear_refs").write_text("5")

    def connect(self) -> GrpcConnection:
        return GrpcConnection(self.address, keys=self.honest)

    def join(self) -> str:
        connection = self.connect()
        session = connection.session(Join("honest", "1"))
        self.sessions.append((connection, session))
        welcome = next(session)
        assert isinstance(welcome, Welcome)
        return welcome.session_secret

    def seconds_of_downloads(self, secret: str, until: "subprocess.Popen[str] | None", least: int) -> list[float]:
        """Download again and again, each over a new connection, until a process has ended; return each one's time."""
        taken: list[float] = []
        while len(taken) < least or (until is not None and until.poll() is None):
            began = time.monotonic()
            assert len(list(self.connect().download(DownloadRequest(secret, 1)))) == 4
            taken.append(time.monotonic() - began)
        return taken


@pytest.fixture
def target(tmp_path: Path) -> Iterator[Target]:
    yield from served(tmp_path, MAX_CONNECTIONS)


@pytest.fixture
def narrow(tmp_path: Path) -> Iterator[Target]:
    """A server of 64 connections."""
    yield from served(tmp_path, 64)


def served(tmp_path: Path, connections: int) -> Iterator[Target]:
    authority = TestAuthority()
    (tmp_path / "ca.pem").write_bytes(authority.root)
    for name, keys in (("server", authority.issue("the server", SERVER)), ("client", authority.issue("mallory"))):
        (tmp_path / f"{name}.pem").write_bytes(keys.private_key + keys.certificate_chain)
    command = [sys.executable, "-m", "tests.transport.hostile_server", str(tmp_path), str(connections)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin and process.stdout
        made = Target(tmp_path, process.stdout.readline().strip(), process, authority.issue("honest"))
        yield made
        for connection, _ in made.sessions:
            connection.close()
        process.stdin.close()
        assert process.wait(20) == 0


class Outcome(NamedTuple):
    """What one attack has done to the server and its honest client."""

    load: Load
    did: dict[str, int]
    before: list[float]
    during: list[float]
    idle_bytes: int
    peak_bytes: int
    bound_bytes: int

    @property
    def line(self) -> str:
        """A row of the docs' table."""
        before, during = (percentile_99(taken) * 1000 for taken in (self.before, self.during))
        grown, allowed = (size - self.idle_bytes >> 20 for size in (self.peak_bytes, self.bound_bytes))
        return (
            f"{self.load.attack}: {self.did}, p99 {before:.0f} ms, then {during:.0f} ms over {len(self.during)}, "
            f"memory +{grown} MiB of +{allowed} MiB"
        )


def percentile_99(taken: list[float]) -> float:
    return statistics.quantiles(taken, n=100, method="inclusive")[98]


def attacked(target: Target, load: Load, count: int, seconds: float, least: int) -> Outcome:
    secret = target.join()
    before = target.seconds_of_downloads(secret, None, least)
    target.reset_peak()
    idle = target.resident_bytes("VmHWM")
    command = [sys.executable, "-m", "tests.transport.hostile_peers", load.attack, target.address, str(target.keys)]
    with subprocess.Popen([*command, str(count), str(seconds)], stdout=subprocess.PIPE, text=True) as attack:
        during = target.seconds_of_downloads(secret, attack, least)
        did = json.loads(attack.communicate(timeout=60)[0])
    connections = min(did["opened"], load.connections)
    bound = idle + connections * (CONNECTION_BYTES + load.calls * CALL_BYTES) + load.messages * MAX_PIECE_BYTES
    bound += UNAUTHENTICATED_BYTES + SLACK_BYTES
    peak = target.resident_bytes("VmHWM")
    assert target.join() is not None, "the server takes new sessions"
    return Outcome(load, did, before, during, idle, peak, bound)


@pytest.mark.parametrize("load", LOADS, ids=[load.attack for load in LOADS])
def test_an_honest_client_goes_on(target: Target, load: Load) -> None:
    outcome = attacked(target, load, load.small, seconds=0.7, least=3)
    print(outcome.line)
    assert outcome.did["opened"] > 0
    assert outcome.peak_bytes <= outcome.bound_bytes, outcome.line


@pytest.mark.stress
@pytest.mark.parametrize("load", LOADS, ids=[load.attack for load in LOADS])
def test_an_honest_client_is_at_most_three_times_as_slow(target: Target, load: Load) -> None:
    outcome = attacked(target, load, load.full, seconds=20.0, least=100)
    print(outcome.line)
    assert outcome.peak_bytes <= outcome.bound_bytes, outcome.line
    assert percentile_99(outcome.during) <= 3 * percentile_99(outcome.before), outcome.line


def flooded(target: Target, attack: str, count: int, limit: int, seconds: float) -> None:
    """Open more connections than a server takes; its memory stays within the formula, and its sessions stay open."""
    secret = target.join()
    connection, _ = target.sessions[0]
    target.reset_peak()
    idle = target.resident_bytes("VmHWM")
    command = [sys.executable, "-m", "tests.transport.hostile_peers", attack, target.address, str(target.keys)]
    with subprocess.Popen([*command, str(count), str(seconds)], stdout=subprocess.PIPE, text=True) as attacking:
        while attacking.poll() is None:
            assert connection.report(Failure(secret, 1, "still here")) == Receipt(1)
            time.sleep(0.05)
        did = json.loads(attacking.communicate(timeout=60)[0])
    grown, bound = target.resident_bytes("VmHWM") - idle, limit * CONNECTION_BYTES
    print(f"{attack}: {did}, memory +{grown >> 20} MiB, the formula has {bound >> 20} MiB for {limit} connections")
    assert did["opened"] == count and did["closed_by_server"] + did["refused"] >= count - limit, did
    assert grown <= bound + FLOOD_SLACK_BYTES


@pytest.mark.parametrize("attack", ["idle_handshakes", "idle_connections"])
def test_connections_beyond_the_limit_are_closed(narrow: Target, attack: str) -> None:
    flooded(narrow, attack, 160, 64, seconds=2.0)


@pytest.mark.stress
@pytest.mark.parametrize("attack", ["idle_handshakes", "idle_connections"])
def test_idle_connections_are_within_the_memory_formula(target: Target, attack: str) -> None:
    flooded(target, attack, 3 * MAX_CONNECTIONS, MAX_CONNECTIONS, seconds=25.0)
