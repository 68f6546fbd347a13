"""The argument `RUN|ID` of commands: the directory of a run on this machine, or the id of a job of a federation."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from flcore.errors import JobError, ProfileError
from flcore.federation.messages import JOB_ID_PATTERN
from flcore.server.run_directory import RUN_FILE
from flcore.text import printable


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
