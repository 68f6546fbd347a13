"""What a shell completes: jobs and runs of the working directory, and names of templates."""

from collections.abc import Iterator
from pathlib import Path

from flcore.job.bundled_jobs import bundled_job_names
from flcore.server.run_directory import HISTORY_FILE, RUN_FILE
from flcore.templates import TEMPLATES

JOB_FILE = "job.toml"
MAX_ENTRIES = 1_000
"""The most entries of a directory that are looked at: completion must stay quick."""


def job_names(incomplete: str) -> list[str]:
    """Return the jobs whose path begins like this: directories with a job.toml, and the bundled jobs."""
    local = [entry for entry in _directories(incomplete) if (Path(entry) / JOB_FILE).is_file()]
    return [name for name in dict.fromkeys([*local, *bundled_job_names()]) if name.startswith(incomplete)]


def run_directories(incomplete: str) -> list[str]:
    """Return the directories of runs whose path begins like this; those in runs/ also before anything is typed."""
    places = [incomplete] if incomplete else ["", "runs/"]
    found = [entry for place in places for entry in _directories(place) if _is_run(Path(entry))]
    return [*found, *(["runs/"] if "runs/".startswith(incomplete) and not found and Path("runs").is_dir() else [])]


def template_names(incomplete: str) -> list[str]:
    """Return the templates of `flcore new` whose name begins like this."""
    return [name for name in TEMPLATES if name.startswith(incomplete)]


def _is_run(directory: Path) -> bool:
    return (directory / RUN_FILE).is_file() or (directory / HISTORY_FILE).is_file()


def _directories(incomplete: str) -> Iterator[str]:
    """Yield the directories whose path begins with a text, as paths that begin with it too."""
    start = incomplete.rpartition("/")[2]
    prefix = incomplete[: len(incomplete) - len(start)]
    try:
        entries = sorted(Path(prefix or ".").iterdir())[:MAX_ENTRIES]
    except OSError:
        return
    for entry in entries:
        is_shown = entry.name.startswith(start) and entry.name.startswith(".") == start.startswith(".")
        if is_shown and entry.is_dir():
            yield f"{prefix}{entry.name}"
