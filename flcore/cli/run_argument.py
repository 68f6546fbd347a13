"""The run that a command was meant for: `flcore run myjob` writes to runs/myjob, and people then name `myjob`."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from flcore.cli.completion import run_directories
from flcore.errors import HistoryError, JobError, ProfileError
from flcore.text import nearest_name, printable


@contextmanager
def suggest_run(*given: str | Path | None) -> Iterator[None]:
    """Add the nearest run in runs/ to an error about a directory that holds none."""
    try:
        yield
    except (HistoryError, JobError, ProfileError) as error:
        meant = next(filter(None, (_nearest_run(each) for each in given if each is not None)), None)
        if meant is None:
            raise
        raise type(error)(f"{error}; did you mean {printable(meant, 200)}?") from error


def _nearest_run(given: str | Path) -> str | None:
    path = str(given).rstrip("/")
    if path in run_directories(path):
        return None
    runs = {Path(each).name: each for each in run_directories("runs/")}
    nearest = nearest_name(Path(path).name, runs)
    return None if nearest is None else runs[nearest]
