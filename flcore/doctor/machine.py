"""The machine: its limit of open files, its memory, and how the kernel hands memory out."""

import re
import resource
from pathlib import Path

from flcore.aggregation.budget import MIN_BUDGET_BYTES, Budget, memory_bytes
from flcore.doctor.result import CheckResult

RESERVED_DESCRIPTORS = 256
"""Descriptors that a server keeps for files, beside those of connections."""

DEFAULT_BUDGET = Budget(1 << 30)

PROC, SYS = Path("/proc"), Path("/sys")


def check_descriptors(clients: int, hard_limit: int | None = None) -> CheckResult:
    """Compare the limit of open files with what a server of so many clients needs.

    Args:
        clients: The number of clients. Each has up to two connections.
        hard_limit: The hard limit, to which a server raises its own. Default: None, that of this process.
    """
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1] if hard_limit is None else hard_limit
    needed = 2 * clients + RESERVED_DESCRIPTORS
    if limit == resource.RLIM_INFINITY or limit >= needed:
        shown = "no limit" if limit == resource.RLIM_INFINITY else f"at most {limit:,}"
        return CheckResult("open files", "ok", f"{shown}; a server of {clients:,} clients needs {needed:,}")
    return CheckResult(
        "open files",
        "failed",
        f"at most {limit:,}; a server of {clients:,} clients needs {needed:,}",
        f"raise the hard limit: LimitNOFILE={needed} in its systemd unit, or `nofile` in /etc/security/limits.conf",
    )


def check_memory(available_bytes: int | None = None, limit_bytes: int | None = None) -> CheckResult:
    """Compare the memory with what a server with the default budget takes.

    Args:
        available_bytes: Memory that is free, or would be. Default: None, as the kernel says.
        limit_bytes: The least of the machine's memory and the limits of its control groups. Default: None, measured.
    """
    limit = memory_bytes() if limit_bytes is None else limit_bytes
    available = min(limit, _available_bytes(limit) if available_bytes is None else available_bytes)
    needed = DEFAULT_BUDGET.nbytes + DEFAULT_BUDGET.overhead_bytes
    least = MIN_BUDGET_BYTES + DEFAULT_BUDGET.overhead_bytes
    found = f"{available >> 20:,} MiB of {limit >> 20:,} MiB are available; a server takes {needed >> 20:,} MiB"
    if available >= needed:
        return CheckResult("memory", "ok", found)
    if available < least:
        advice = f"a server needs at least {least >> 20:,} MiB: end other processes, or raise the control group's limit"
        return CheckResult("memory", "failed", found, advice)
    fitting = (available - DEFAULT_BUDGET.overhead_bytes) >> 20
    return CheckResult("memory", "warning", found, f"start the server with --budget {fitting}MiB, or free memory")


def check_overcommit(proc: Path = PROC) -> CheckResult:
    """Check that the kernel does not count reserved addresses as memory, of which NumPy and gRPC reserve many."""
    mode = _read(proc / "sys/vm/overcommit_memory")
    if mode != "2":
        return CheckResult("overcommit", "ok", f"vm.overcommit_memory = {mode or 'unknown'}")
    limit = re.search(r"^CommitLimit:\s+(\d+) kB", _read(proc / "meminfo"), re.MULTILINE)
    found = "vm.overcommit_memory = 2" + (f", {int(limit[1]) >> 10:,} MiB may be reserved" if limit else "")
    advice = "allocations fail while memory is free: sysctl vm.overcommit_memory=0, or raise vm.overcommit_ratio"
    return CheckResult("overcommit", "warning", found, advice)


def check_huge_pages(sys: Path = SYS) -> CheckResult:
    """Check that large arrays may have huge pages, which NumPy asks for."""
    setting = re.search(r"\[(\w+)\]", _read(sys / "kernel/mm/transparent_hugepage/enabled"))
    mode = setting[1] if setting else "unknown"
    if mode == "never":
        advice = "echo madvise > /sys/kernel/mm/transparent_hugepage/enabled: fewer page faults for large models"
        return CheckResult("huge pages", "warning", "transparent huge pages: never", advice)
    return CheckResult("huge pages", "ok", f"transparent huge pages: {mode}")


def _available_bytes(otherwise: int) -> int:
    found = re.search(r"^MemAvailable:\s+(\d+) kB", _read(PROC / "meminfo"), re.MULTILINE)
    return int(found[1]) << 10 if found else otherwise


def _read(path: Path) -> str:
    """Return a file of the kernel's; an empty string where there is none, as on macOS."""
    try:
        return path.read_text(encoding="ascii", errors="replace").strip()
    except OSError:
        return ""
