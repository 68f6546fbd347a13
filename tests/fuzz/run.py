"""The fuzzer: feeds mutated inputs to every decoder, in one process: `python -m tests.fuzz.run --inputs 1000000`.

An input must be refused by a `FlcoreError`, or accepted in canonical form; within a second; and with less memory than
`MAX_GROWTH_BYTES`. Input N of a target follows from the seed alone: `--only TARGET --first N --inputs 1` repeats it.
"""

import argparse
import faulthandler
import os
import random
import resource
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from flcore.errors import FlcoreError
from flcore.job.job import Job
from tests.flcore.processes import write_small_job
from tests.fuzz.content_targets import Contents
from tests.fuzz.file_targets import AuditLogs, DenyLists, Headers, Histories, Indexes, JobFiles, Sites, Updates
from tests.fuzz.message_targets import Joins, Layouts, Messages
from tests.fuzz.pack_targets import Packs
from tests.fuzz.piece_targets import Pieces, StagedPieces
from tests.fuzz.target import Target

MAX_INPUT_S = 1.0
"""Seconds of the process's own time that one input may take. A stall without work is ended after `STUCK_S`."""

STUCK_S = 300.0
"""Far above what 16 inputs take on a busy machine."""

MAX_INPUT_BYTES = 2 << 20
"""Twice the largest control message."""

MAX_GROWTH_BYTES = 64 << 20
"""How much the resident memory may grow by one input: protobuf takes thirty times the 1 MiB of the largest message."""

ADDRESS_SPACE_BYTES = 1 << 30
"""How much the address space may grow: an allocation of an announced length fails here at once."""


def targets(directory: Path) -> list[Target]:
    """Return all targets; they may write into a directory."""
    write_small_job(directory)
    job = Job.load(directory / "small")
    return [
        Pieces(),
        StagedPieces(),
        Messages(),
        Layouts(),
        Joins(job),
        Contents(),
        *(kind(directory) for kind in (Headers, Indexes, Updates, Histories, AuditLogs, DenyLists, Sites, JobFiles)),
        Packs(directory),
    ]


def draw_input(target: Target, seed: int, number: int) -> tuple[int, bytes]:
    """Return the case and the bytes of a target's input `number`."""
    draw = random.Random(f"{seed}/{target.name}/{number}")
    case = draw.randrange(target.cases)
    return case, target.make(draw, case)[:MAX_INPUT_BYTES]


class PeakMemory:
    """The peak of this process's resident memory, which Linux can reset. Elsewhere it is taken for 0."""

    def __init__(self) -> None:
        self._files: tuple[int, int] | None = None
        if Path("/proc/self/clear_refs").exists():
            self._files = os.open("/proc/self/clear_refs", os.O_WRONLY), os.open("/proc/self/status", os.O_RDONLY)

    def reset(self) -> int:
        """Begin anew, and return the present size in bytes."""
        if self._files is not None:
            os.pwrite(self._files[0], b"5", 0)
        return self.nbytes()

    def nbytes(self) -> int:
        """Return the peak since the last reset, in bytes."""
        if self._files is None:
            return 0
        return int(os.pread(self._files[1], 4096, 0).partition(b"VmHWM:")[2].split(None, 1)[0]) << 10


def limit_address_space() -> None:
    """Let the address space grow by `ADDRESS_SPACE_BYTES` and no further."""
    if sys.platform == "linux":
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * resource.getpagesize() + ADDRESS_SPACE_BYTES
        resource.setrlimit(resource.RLIMIT_AS, (limit, resource.getrlimit(resource.RLIMIT_AS)[1]))


class Fuzzer:
    """Feeds inputs and counts the outcomes."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.tried: Counter[str] = Counter()
        self.accepted: Counter[str] = Counter()
        self.seconds: Counter[str] = Counter()
        self.failures: list[str] = []
        self.slowest: tuple[float, str] = (0.0, "none")
        self.largest: tuple[int, str] = (0, "none")
        self._memory = PeakMemory()

    def feed(self, target: Target, number: int) -> None:
        """Feed one input of a target."""
        case, data = draw_input(target, self.seed, number)
        self.tried[target.name] += 1
        place = f"{target.name}, input {number} (case {case}, {len(data)} bytes)"
        before, began = self._memory.reset(), time.process_time()
        try:
            target.feed(case, data)
            self.accepted[target.name] += 1
        except FlcoreError:
            pass
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # noqa: BLE001 - every other one is a finding, a panic of a library, too
            where = traceback.extract_tb(error.__traceback__)[-1]
            text = f"{type(error).__name__}: {str(error)[:200]} ({Path(where.filename).name}:{where.lineno})"
            self._fail(f"{place}: {text}; {data[:200]!r}")
        seconds, growth = time.process_time() - began, self._memory.nbytes() - before
        self.seconds[target.name] += seconds  # type: ignore[assignment]
        self.slowest, self.largest = max(self.slowest, (seconds, place)), max(self.largest, (growth, place))
        if seconds > MAX_INPUT_S:
            self._fail(f"{place}: {seconds:.2f} s; {data[:200]!r}")
        if growth > MAX_GROWTH_BYTES:
            self._fail(f"{place}: it took {growth >> 20} MiB of memory; {data[:200]!r}")

    def _fail(self, text: str) -> None:
        self.failures.append(text)
        print(f"FAILURE {text}", flush=True)

    def report(self, began: float) -> str:
        """Return the figures as lines."""
        seconds, total = time.monotonic() - began, self.tried.total()
        lines = [
            f"{name:18}{self.tried[name]:>10,} inputs {self.accepted[name]:>9,} accepted "
            f"{1e6 * self.seconds[name] / self.tried[name]:>7.0f} us each"
            for name in self.tried
        ]
        return "\n".join(
            [
                *lines,
                f"{total:,} inputs in {seconds:.0f} s, {total / seconds:,.0f} per second, seed {self.seed}",
                f"{self.accepted.total():,} accepted, {len(self.failures)} failures",
                f"slowest: {1e3 * self.slowest[0]:.0f} ms, {self.slowest[1]}",
                f"most memory: {self.largest[0] / (1 << 20):.0f} MiB, {self.largest[1]}",
            ]
        )


def schedule(chosen: Sequence[Target], inputs: int) -> list[tuple[Target, int]]:
    """Return how many inputs each target gets; the shares of pieces, messages and contents are 1,000 together."""
    return [(target, max(1, round(inputs * target.share / 1_000))) for target in chosen]


def run(fuzzer: Fuzzer, chosen: Sequence[Target], inputs: int, first: int, seconds: float) -> None:
    """Feed inputs in slices, so that all targets have had their share when the time is up."""
    began, reported = time.monotonic(), time.monotonic()
    progress = {target.name: first for target in chosen}
    plan = schedule(chosen, inputs)
    total = sum(count for _, count in plan)
    slices = max(1, min(200, inputs // 2_000))
    for step in range(1, slices + 1):
        for target, count in plan:
            while progress[target.name] < first + count * step // slices:
                if time.monotonic() - began > seconds:
                    print(f"the time of {seconds:.0f} s is up")
                    return
                if progress[target.name] % 16 == 0:  # a timer costs more than most inputs
                    faulthandler.dump_traceback_later(STUCK_S, exit=True)
                fuzzer.feed(target, progress[target.name])
                progress[target.name] += 1
        if time.monotonic() - reported > 30:
            reported = time.monotonic()
            done, rate = fuzzer.tried.total(), fuzzer.tried.total() / (reported - began)
            left = max(0, total - done) / rate
            print(f"{done:,} of {total:,} inputs, {rate:,.0f} per second, about {left:.0f} s left", flush=True)


def main(arguments: Sequence[str] | None = None, say: Callable[[str], None] = print) -> int:
    """Run the fuzzer; return 1 if there was a failure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--inputs", type=int, default=1_000_000, help="how many pieces, messages and contents; files come on top"
    )
    parser.add_argument("--seconds", type=float, default=3_300.0, help="when to end, if not all inputs were fed")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(2**32), help="default: drawn")
    parser.add_argument("--only", action="append", help="the name of a target; may be given more than once")
    parser.add_argument("--first", type=int, default=0, help="the number of each target's first input")
    given = parser.parse_args(arguments)
    say(f"seed {given.seed}: {given.inputs:,} inputs in at most {given.seconds:.0f} s")
    began, fuzzer = time.monotonic(), Fuzzer(given.seed)
    in_memory = "/dev/shm" if Path("/dev/shm").is_dir() else None
    with tempfile.TemporaryDirectory(dir=in_memory) as directory:
        chosen = [each for each in targets(Path(directory)) if not given.only or each.name in given.only]
        limit_address_space()
        run(fuzzer, chosen, given.inputs, given.first, given.seconds)
        faulthandler.cancel_dump_traceback_later()
    say(fuzzer.report(began))
    return 1 if fuzzer.failures else 0


if __name__ == "__main__":
    sys.exit(main())
