"""The memory budget of a server's payloads: its parts, and the peak memory of the process."""

import os
import re
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from flcore_kernels import bytes_per_element
from flcore_transport import CONNECTION_BYTES, MAX_CONNECTIONS, UNAUTHENTICATED_BYTES

from flcore.aggregation.admission_limits import accumulator_for
from flcore.errors import BudgetError
from flcore.model.spec import ModelSpec

PROCESS_BYTES = 280 << 20
"""Memory of a server process without its payloads and connections: Python, libraries, compiled kernels."""

DATABASE_BYTES = 8 << 20
"""Memory of SQLite, for the record of a run: the library, its page cache of 2 MiB, and the index of its log."""

MIN_BUDGET_BYTES = 64 << 20
"""The least budget. A quarter of it, 16 MiB, holds two windows of 8 MiB, or four chunks of 2 MiB that are combined
while four are read."""

CGROUPS = Path("/sys/fs/cgroup")
"""Where Linux mounts control groups."""

_UNITS = {"B": 1} | {
    f"{prefix}{kind}": base**power
    for power, prefix in enumerate("KMGT", 1)
    for kind, base in (("B", 1000), ("iB", 1024), ("", 1024))
}


def parse_size(text: str) -> int | None:
    """Return the bytes of a number and a unit (`Budget.parse`); None if it is something else.

    >>> parse_size("1.5GiB"), parse_size("8MB"), parse_size("8 gigabytes")
    (1610612736, 8000000, None)
    """
    match = re.fullmatch(r"(\d{1,18}(?:\.\d+)?)\s*([KMGT]?(?:i?B)?)", text.strip())
    return None if match is None or match[2] not in _UNITS else int(float(match[1]) * _UNITS[match[2]])


@dataclass(frozen=True)
class Budget:
    """The bytes of payloads that a server holds at most, beside the models and totals of the streaming plan.

    The budget has four parts:

    - `in_flight_bytes`: pieces being received or sent; a quarter, at most 128 MiB.
    - `working_bytes`: chunks being read and combined; a quarter, at most 64 MiB.
    - `staging_bytes`: updates staged in memory; three quarters of the rest.
    - The remainder covers fragmentation in the allocator.

    Args:
        nbytes: The budget in bytes, at least 64 MiB.
        connections: The most connections of the server at a time. They are beside the budget (`overhead_bytes`).

    Raises:
        BudgetError: The budget is below 64 MiB.

    Example:
        >>> Budget(1 << 30).staging_bytes >> 20
        624
    """

    nbytes: int
    connections: int = MAX_CONNECTIONS

    def __post_init__(self) -> None:
        if self.nbytes < MIN_BUDGET_BYTES:
            raise BudgetError(f"a budget of {self.nbytes:,} bytes is too small for any job; 64MiB would do")

    @classmethod
    def parse(cls, text: str) -> "Budget":
        """Parse a number and a unit, such as `512MiB` or `2GB`.

        Args:
            text: A decimal number and a unit: `B`; `KB`, `MB`, `GB`, `TB` (powers of 1000); `KiB`, `MiB`, `GiB`,
                `TiB`, or `K`, `M`, `G`, `T` for short (powers of 1024).

        Returns:
            The budget.

        Raises:
            BudgetError: The text is not a number and a unit, or the budget is below 64 MiB.

        Example:
            >>> Budget.parse("1.5GiB").nbytes, Budget.parse("1G").nbytes
            (1610612736, 1073741824)
        """
        nbytes = parse_size(text)
        if nbytes is None:
            raise BudgetError(f"a budget is a number and a unit, such as 512MiB or 2GB, not {text!r}")
        return cls(nbytes)

    @property
    def in_flight_bytes(self) -> int:
        """Bytes for pieces that are being received or sent."""
        return min(128 << 20, self.nbytes // 4)

    @property
    def working_bytes(self) -> int:
        """Bytes for chunks that are being read and combined."""
        return min(64 << 20, self.nbytes // 4)

    @property
    def staging_bytes(self) -> int:
        """Bytes for updates that are staged in memory until they are folded."""
        return (self.nbytes - self.in_flight_bytes - self.working_bytes) * 3 // 4

    @property
    def overhead_bytes(self) -> int:
        """Memory of a server beside its payloads, which the budget does not contain; 416 MiB by default.

        Python, libraries and kernels, SQLite, joins that are being read, and connections with their TLS.
        """
        return PROCESS_BYTES + DATABASE_BYTES + UNAUTHENTICATED_BYTES + self.connections * CONNECTION_BYTES

    def peak_bytes(self, plan: str, spec: ModelSpec, accumulate: str, state_bytes: int = 0) -> int:
        """Return the peak memory of a server process in bytes, for any number of clients.

        Args:
            plan: "batch": the budget and `overhead_bytes`. "streaming": also two models, and a total of 4 (float32),
                8 (float64) or 16 1/32 (exact) bytes per parameter.
            spec: The tensors of the model.
            accumulate: "exact", "float64" or "float32".
            state_bytes: Bytes of the state of a server optimizer, of which "streaming" holds two: the old one and the
                new one. Default: 0, none.

        Returns:
            The peak in bytes.

        Raises:
            BudgetError: The plan does not exist.
        """
        if plan == "batch":
            return self.nbytes + self.overhead_bytes
        if plan != "streaming":
            raise BudgetError(f"plan {plan!r} does not exist; expected batch or streaming")
        # Two models: the one that clients read, and the next one, which `finish` makes from the total.
        total = sum(
            segment.elements * bytes_per_element(accumulator_for(segment.dtype, accumulate))
            for segment in spec.segments
        )
        return int(2 * (spec.nbytes + state_bytes) + total) + self.nbytes + self.overhead_bytes

    def require_connections(self, client_count: int) -> None:
        """Raise an error unless each client has a connection for its session.

        Args:
            client_count: The number of clients of the job.

        Raises:
            BudgetError: There are too few connections. The error names a number that suffices.
        """
        if client_count > self.connections:
            # A large upload or download has a socket of its own, so twice the number is right.
            raise BudgetError(
                f"{client_count:,} clients need as many connections and more for their transfers, and the server takes "
                f"{self.connections:,}; start it with --connections {2 * client_count}"
            )

    def require(
        self,
        plan: str,
        spec: ModelSpec,
        accumulate: str,
        available_bytes: int | None = None,
        *,
        state_bytes: int = 0,
    ) -> None:
        """Raise an error unless a job's server fits into the available memory.

        Args:
            plan: "batch" or "streaming".
            spec: The tensors of the model.
            accumulate: "exact", "float64" or "float32".
            available_bytes: The available memory in bytes. Default: None, that of the machine and its control groups.
            state_bytes: As for `peak_bytes`.

        Raises:
            BudgetError: The peak exceeds the available memory. The error names budgets and plans that fit.
        """
        available = memory_bytes() if available_bytes is None else available_bytes
        needed = self.peak_bytes(plan, spec, accumulate, state_bytes)
        if needed <= available:
            return
        fitting = available - (needed - self.nbytes)  # the largest budget with this plan
        remedies = [f"a budget of {_format_size(fitting)}"] if fitting >= MIN_BUDGET_BYTES else []
        batch = replace(self, nbytes=min(self.nbytes, max(MIN_BUDGET_BYTES, available - self.overhead_bytes)))
        if plan != "batch" and batch.peak_bytes("batch", spec, accumulate) <= available:
            remedies.append(f"the plan batch with a budget of {_format_size(batch.nbytes)}")
        remedy = f"; {' would do, or '.join(remedies)} would do" if remedies else ""
        raise BudgetError(
            f"a server with the plan {plan}, a budget of {_format_size(self.nbytes)} "
            f"and a model of {_format_size(spec.nbytes)} "
            f"takes up to {_format_size(needed)} of memory, and there are {_format_size(available)}{remedy}"
        )


def memory_bytes(groups: Path = CGROUPS, membership: Path = Path("/proc/self/cgroup")) -> int:
    """Return the available memory in bytes: the minimum of the machine's and the limits of this process's cgroups."""
    limits = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    with suppress(OSError):
        for line in membership.read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers in ("", "memory"):  # version 2, or the memory controller of version 1
                group = groups / controllers / path.lstrip("/")
                # The limits of all parents hold too.
                limits += [_limit(parent) for parent in (group, *group.parents) if parent.is_relative_to(groups)]
    return min(limits)


def _limit(group: Path) -> int:
    """Return a control group's limit in bytes, of version 2 or 1; 2^63 if it has none."""
    for name in ("memory.max", "memory.limit_in_bytes"):
        with suppress(OSError, ValueError):  # "max" is no limit; the other version's file does not exist
            return int((group / name).read_text())
    return 1 << 63


def _format_size(nbytes: int) -> str:
    """Return a size as `Budget.parse` reads it, rounded down to whole MiB."""
    return f"{nbytes >> 20}MiB"


DEFAULT_BUDGET = Budget(1 << 30)
