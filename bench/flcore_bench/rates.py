"""The machine's own rates: loopback, disk, and checking of pieces.

They are measured in the same run as a round, and give a floor for its duration.
"""

import os
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np
from flcore_kernels import backend
from flcore_layout import SegmentRange
from flcore_transport import Inbox, Outbox

from flcore_bench.federation import FederationSpec
from flcore_bench.internals import WireFormat
from flcore_bench.shapes import spec_named
from flcore_bench.synthetic_payload import SyntheticPayload
from flcore_bench.transport_client import bare_samples
from flcore_bench.transport_tuning import Tuning

SAMPLES = 3
MAX_MOVED_BYTES = 512_000_000
CHECKED_BYTES = 64_000_000
DISK_CHUNK_BYTES = 2 << 20


@dataclass(frozen=True)
class Rates:
    """Bytes per second: to the server and from it over bare gRPC, to the disk and from it."""

    up: float
    down: float
    write: float
    read: float

    def floor_s(self, run: FederationSpec) -> float:
        """Return the seconds to transfer a round's bytes, stage them, read them back and write the result in turn."""
        moved = run.clients * run.model_bytes
        at_disk = moved / self.write + moved / self.read + run.model_bytes / self.write
        return moved / self.up + moved / self.down + at_disk

    def __str__(self) -> str:
        rates = {"up": self.up, "down": self.down, "written": self.write, "read": self.read}
        return ", ".join(f"{name} {rate / 1e9:.2f} GB/s" for name, rate in rates.items())


def measure_rates(run: FederationSpec, threads: int) -> Rates:
    """Measure with as many bytes as a round of the run moves, on the disk of the temporary directory."""
    size = min(MAX_MOVED_BYTES, run.model_bytes)
    with bare_samples(size, Tuning(), threads) as samples:
        up = min(samples["upload, bare"]() for _ in range(SAMPLES))
        down = min(samples["download, bare"]() for _ in range(SAMPLES))
    with tempfile.TemporaryDirectory(prefix="flcore-bench-") as directory:
        disk = disk_rates(Path(directory), run.clients * run.model_bytes)
    return Rates(size / up, size / down, disk.write, disk.read)


@dataclass(frozen=True)
class DiskRates:
    """Bytes per second to a file and from it, through the page cache."""

    write: float
    read: float


def disk_rates(directory: Path, size: int) -> DiskRates:
    """Write a file of `size` bytes in chunks of 2 MiB, and read it back.

    A size like a round's gives the page cache the same effect as in a round.
    """
    written = os.urandom(DISK_CHUNK_BYTES)
    target = bytearray(DISK_CHUNK_BYTES)
    chunks = max(1, size // DISK_CHUNK_BYTES)
    with tempfile.TemporaryFile(dir=directory, buffering=0) as file:
        started = time.perf_counter()
        for _ in range(chunks):
            file.write(written)
        turned = time.perf_counter()
        file.seek(0)
        for _ in range(chunks):
            file.readinto(target)
        ended = time.perf_counter()
    total = chunks * DISK_CHUNK_BYTES
    return DiskRates(total / (turned - started), total / (ended - turned))


def synced_write_s(directory: Path, size: int) -> float:
    """Return the seconds to write a file of `size` bytes in chunks of 2 MiB and sync it, as `dd conv=fsync` does."""
    content = memoryview(os.urandom(DISK_CHUNK_BYTES))
    with tempfile.TemporaryFile(dir=directory, buffering=0) as file:
        started = time.perf_counter()
        for first in range(0, size, DISK_CHUNK_BYTES):
            file.write(content[: size - first])
        os.fsync(file.fileno())
        return time.perf_counter() - started


def measure_check_rate() -> float:
    """Return the bytes per second that one thread checks: checksum, Arrow framing, and finite values."""
    spec = spec_named("flat", CHECKED_BYTES)
    outbox = Outbox(SyntheticPayload(WireFormat.uncompressed(spec)))
    pieces = [outbox.piece(index) for index in range(len(outbox.piece_ranges))]
    taken = []
    for _ in range(SAMPLES + 1):
        inbox = Inbox(SyntheticPayload(WireFormat.uncompressed(spec)).layout, _ScanningSink())
        started = time.perf_counter()
        for piece in pieces:
            inbox.accept(piece)
        taken.append(time.perf_counter() - started)
    return CHECKED_BYTES / median(taken[1:])


class _ScanningSink:
    """A sink that scans every value for NaN and infinity, as staging does."""

    def __init__(self) -> None:
        self._backend = backend("cpu")

    def write(self, piece: SegmentRange, body: memoryview) -> None:
        seen = self._backend.inspect(np.frombuffer(body, np.float32), piece.dtype)
        if seen.first_bad >= 0:
            raise RuntimeError("the pattern is not finite")
