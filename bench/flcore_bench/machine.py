"""The machine that is measured: what it is, and what it runs."""

import os
import platform
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

LIBRARIES = ("numpy", "numba")


@dataclass(frozen=True)
class Machine:
    """What a figure was measured on."""

    processor: str
    cores: int
    memory_gib: float
    system: str
    python: str
    libraries: str

    @property
    def line(self) -> str:
        """One line for a table."""
        return (
            f"{self.processor}, {self.cores} cores, {self.memory_gib} GiB, {self.system}, "
            f"Python {self.python}, {self.libraries}"
        )


def describe_machine() -> Machine:
    """Return what this machine says of itself."""
    return Machine(
        processor=_processor(),
        cores=available_cores(),
        memory_gib=round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        system=platform.system(),
        python=platform.python_version(),
        libraries=", ".join(f"{name} {version(name)}" for name in LIBRARIES),
    )


def _processor() -> str:
    """Return the model's name and, because some names say little, the family and the model's number."""
    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.is_file():
        return platform.processor() or platform.machine()
    facts: dict[str, str] = {}
    for line in cpuinfo.read_text().splitlines():
        key, _, value = line.partition(":")
        facts.setdefault(key.strip(), value.strip())
    name = facts.get("model name", platform.machine())
    if "cpu family" in facts:
        name += f" (family {facts['cpu family']}, model {facts.get('model', '?')})"
    return name


def available_cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def peak_bytes() -> int:
    """Return this process's peak resident memory. (`getrusage` would start from its parent's.)"""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
