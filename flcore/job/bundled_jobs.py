"""The jobs that come with flcore. Imports nothing else, as the shell's completion waits for it."""

from pathlib import Path

BUNDLED_JOBS = Path(__file__).parent.parent / "jobs"


def bundled_job_names() -> list[str]:
    """Return the names of the bundled jobs, sorted.

    >>> bundled_job_names()
    ['digits']
    """
    return sorted(file.parent.name for file in BUNDLED_JOBS.glob("*/job.toml"))
