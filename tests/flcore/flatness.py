"""Whether a long run keeps to the memory, threads, descriptors and files that it has once it is warm.

The last quarter of the samples is compared with the second one, by medians: single samples differ by what is just in
flight. The files that record the run grow by as much in every round.
"""

from collections.abc import Iterator, Sequence
from statistics import median
from typing import NamedTuple

from tests.flcore.soak import Sample, Usage

GROWING_FILES = ("audit.jsonl", "history.jsonl", "state.sqlite")
WAL = "state.sqlite-wal"
MAX_WAL_BYTES = 5 << 20
"""SQLite writes the log back when a transaction has made it 1,000 pages of 4 KiB long, and then begins it anew."""

RECORD_STEP_BYTES = 1 << 20
"""What writing the log back adds to the database at once, with room to spare."""


class Tolerance(NamedTuple):
    """By how much the last quarter may exceed the second one.

    Attributes:
        pss_bytes: Of memory with mapped files: the model's files are mapped now and then.
        heap_bytes: Of memory that is no file: freed blocks stay in the process, and are laid out anew each round.
        threads: Of threads: gRPC's pool takes one more when many calls come at once.
        descriptors: Of open files and sockets.
        cpu: The share of CPU per round. (Seconds per round depend on what else the machine does.)
        file_bytes: Of files that do not grow: updates and models come and go within a round.
        records: The share by which a record is larger than its first half tells.
    """

    pss_bytes: int
    heap_bytes: int
    threads: int = 3
    descriptors: int = 2
    cpu: float = 0.25
    file_bytes: int = 4 << 20
    records: float = 0.10


def growths(samples: Sequence[Sample], tolerance: Tolerance) -> list[str]:
    """Return everything that has grown by more than its tolerance; empty for a run that is flat."""
    quarter = len(samples) // 4
    second, last = samples[quarter : 2 * quarter], samples[-quarter:]
    grown = [*_grown_processes(second, last, tolerance), *_grown_files(second, last, tolerance)]
    before, after = _cpu_per_round(second), _cpu_per_round(last)
    if after > (1 + tolerance.cpu) * before:
        grown.append(f"the server's CPU per round: {before:.3f} s, then {after:.3f} s")
    half, whole = samples[len(samples) // 2], samples[-1]
    for name in GROWING_FILES:
        expected = half.bytes_of(name) * whole.round / half.round
        if whole.bytes_of(name) > (1 + tolerance.records) * expected + RECORD_STEP_BYTES:
            grown.append(f"{name}: {whole.bytes_of(name):,} bytes, expected {expected:,.0f} by its first half")
    return grown


def _grown_processes(second: Sequence[Sample], last: Sequence[Sample], tolerance: Tolerance) -> Iterator[str]:
    roles = ["the server", *(f"client process {number + 1}" for number in range(len(last[0].clients)))]
    for number, role in enumerate(roles):
        for name in ("pss_bytes", "heap_bytes", "threads", "descriptors"):
            before, after = (
                median(getattr(_usages(sample)[number], name) for sample in part) for part in (second, last)
            )
            if after > before + getattr(tolerance, name):
                yield f"{role}'s {name}: {before:,.0f}, then {after:,.0f}"


def _usages(sample: Sample) -> tuple[Usage, ...]:
    return (sample.server, *sample.clients)


def _grown_files(second: Sequence[Sample], last: Sequence[Sample], tolerance: Tolerance) -> Iterator[str]:
    names = {name for sample in last for name in sample.files}
    for name in sorted(names - set(GROWING_FILES)):
        before, after = (max(sample.bytes_of(name) for sample in part) for part in (second, last))
        if name == WAL and after > MAX_WAL_BYTES:
            yield f"{name}: {after:,} bytes, at most {MAX_WAL_BYTES:,}"
        elif name != WAL and after > before + tolerance.file_bytes:
            yield f"{name}: {before:,} bytes, then {after:,}"


def _cpu_per_round(samples: Sequence[Sample]) -> float:
    return (samples[-1].server.cpu_s - samples[0].server.cpu_s) / (samples[-1].round - samples[0].round)
