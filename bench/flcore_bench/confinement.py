"""A limit of the system's own on a process's memory, page cache included: a cgroup, where this process may make one."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

LIMITS = {"memory": "memory.limit_in_bytes", "": "memory.max"}
"""The file with the limit, by the controller that a line of /proc/self/cgroup names: version 1, version 2."""

MOUNTS = {"memory": Path("/sys/fs/cgroup/memory"), "": Path("/sys/fs/cgroup")}


@contextmanager
def confinement(most: int) -> Iterator[Path | None]:
    """Yield the file by which a process joins a new group that may take `most` bytes, or None where none can be made.

    The group is removed at the end, when nobody may be in it any more.
    """
    group = _made(most) if most else None
    try:
        yield None if group is None else group / "cgroup.procs"
    finally:
        if group is not None:
            with suppress(OSError):
                group.rmdir()


def _made(most: int) -> Path | None:
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controller, own = line.split(":", 2)
        if controller not in LIMITS:
            continue
        for parent in (MOUNTS[controller] / own.lstrip("/"), MOUNTS[controller]):
            with suppress(OSError):
                group = Path(tempfile.mkdtemp(prefix=f"flcore-bench-{os.getpid()}-", dir=parent))
                try:
                    # The kernel makes this file; where it does not, this is an ordinary directory.
                    with (group / LIMITS[controller]).open("r+") as limit:
                        limit.write(str(most))
                except OSError:
                    group.rmdir()
                    raise
                return group
    return None
