"""What a server's process uses: memory against its budget, and the disk of its run."""

import os
import shutil
from contextlib import suppress
from pathlib import Path

from flcore.server.events import StorageOpened
from flcore.status.job_status import ResourceStatus


def probe(storage: StorageOpened) -> ResourceStatus:
    """Return what the process uses now. Reads the system: call it without a lock."""
    free, total = None, None
    if storage.directory is not None:
        with suppress(OSError):
            usage = shutil.disk_usage(storage.directory)
            free, total = usage.free, usage.total
    return ResourceStatus(
        storage.budget_bytes, storage.staging_budget_bytes, storage.staged_bytes(), resident_bytes(), free, total
    )


def resident_bytes() -> int | None:
    """Return the resident memory of this process; None on a system without /proc."""
    with suppress(OSError, ValueError, IndexError):
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return None
