"""How much memory this process may take: the machine's, or what its control group allows."""

import os
from contextlib import suppress
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")


def memory_bytes(groups: Path = CGROUPS, own: Path = Path("/proc/self/cgroup")) -> int:
    """Return the least of the machine's memory and the limits of the control groups that this process is in."""
    limits = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    with suppress(OSError):
        for line in own.read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers in ("", "memory"):  # version 2, or the memory controller of version 1
                group = groups / controllers / path.lstrip("/")
                limits += [_limit(each) for each in (group, *group.parents) if each.is_relative_to(groups)]
    return min(limits)


def _limit(group: Path) -> int:
    for name in ("memory.max", "memory.limit_in_bytes"):
        with suppress(OSError, ValueError):  # no limit is "max", or no such file
            return int((group / name).read_text())
    return 1 << 63
