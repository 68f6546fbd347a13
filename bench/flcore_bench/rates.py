"""What the machine does by itself: moving bytes over loopback, writing and reading files, checking pieces.

Measured in the same run as a round, they say what moving, writing, reading back and writing its result take at least.
"""

import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np
from flcore_kernels import backend
from flcore_transport import Inbox, Outbox, PieceRange

from flcore_bench.disk import disk_rates
from flcore_bench.federated import Federated
from flcore_bench.inside import WireFormat
from flcore_bench.shapes import spec_named
from flcore_bench.tiled import Tiled
from flcore_bench.transport_client import bare_samples
from flcore_bench.tuning import Tuning

SAMPLES = 3
MAX_MOVED = 512_000_000
CHECKED = 64_000_000


@dataclass(frozen=True)
class Rates:
    """Bytes per second: to the server and from it over bare gRPC, to the disk and from it."""

    up: float
    down: float
    write: float
    read: float

    def floor_s(self, run: Federated) -> float:
        """Return the seconds that a round's bytes take in turn: moved, written, read back, and the result written."""
        moved = run.clients * run.model_bytes
        at_disk = moved / self.write + moved / self.read + run.model_bytes / self.write
        return moved / self.up + moved / self.down + at_disk

    def __str__(self) -> str:
        rates = {"up": self.up, "down": self.down, "written": self.write, "read": self.read}
        return ", ".join(f"{name} {rate / 1e9:.2f} GB/s" for name, rate in rates.items())


def measured_rates(run: Federated, threads: int) -> Rates:
    """Measure with as many bytes as the run's, in the directory where its server would write."""
    size = min(MAX_MOVED, run.model_bytes)
    with bare_samples(size, Tuning(), threads) as samples:
        up = min(samples["upload, bare"]() for _ in range(SAMPLES))
        down = min(samples["download, bare"]() for _ in range(SAMPLES))
    with tempfile.TemporaryDirectory(prefix="flcore-bench-") as directory:
        disk = disk_rates(Path(directory), run.clients * run.model_bytes)
    return Rates(size / up, size / down, disk.write, disk.read)


def check_rate() -> float:
    """Return how many bytes a second one thread checks: checksum, Arrow form, and that all values are finite."""
    spec = spec_named("flat", CHECKED)
    outbox = Outbox(Tiled(WireFormat.uncompressed(spec)))
    pieces = [outbox.piece(index) for index in range(len(outbox.plan))]
    taken = []
    for _ in range(SAMPLES + 1):
        inbox = Inbox(Tiled(WireFormat.uncompressed(spec)).layout, _Inspected())
        started = time.perf_counter()
        for piece in pieces:
            inbox.accept(piece)
        taken.append(time.perf_counter() - started)
    return CHECKED / median(taken[1:])


class _Inspected:
    """A sink that looks at every value, as staging does."""

    def __init__(self) -> None:
        self._backend = backend("cpu")

    def write(self, piece: PieceRange, body: memoryview) -> None:
        seen = self._backend.inspect(np.frombuffer(body, np.float32), piece.dtype)
        if seen.first_bad >= 0:
            raise RuntimeError("the pattern is not finite")
