"""The arguments `RUN` and `RUN|ID` of commands: a run's directory on this machine, or the id of a federation's job."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from flcore.cli.completion import run_directories
from flcore.errors import HistoryError, JobError, ProfileError
from flcore.federation.messages import JOB_ID_PATTERN
from flcore.server.run_directory import RUN_FILE
from flcore.text import nearest_name, printable


def is_directory_of_run(run: str) -> bool:
    """Whether an argument is a directory, and not the id of a job. Raises `JobError` if it is neither."""
    # `flcore download ID` makes a directory of the same name, which is none of a run.
    if (Path(run) / RUN_FILE).exists():
        return True
    if re.fullmatch(JOB_ID_PATTERN, run):
        return False
    if Path(run).is_dir():
        return True
    raise JobError(f"expected the directory of a run, or the id of a job such as digits-12, got {printable(run, 200)}")


@contextmanager
def taken_as_job_id(run: str) -> Iterator[None]:
    """In errors about the federation that has the job, say why the argument was not taken as a directory."""
    try:
        yield
    except ProfileError as error:
        raise ProfileError(f"{run} is no run's directory; as the id of a job: {error}") from error


@contextmanager
def suggest_run(*given: str | Path | None) -> Iterator[None]:
    """Add the nearest run in runs/ to an error about a directory that holds none.

    `flcore run myjob` writes to runs/myjob, and people then name `myjob`.
    """
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
