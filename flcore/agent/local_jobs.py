"""The job directories that lie at a site. They are read anew for each offer, so their owner may change them."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from flcore.agent.site_policy import LocalJob
from flcore.errors import JobError
from flcore.job.bundled_jobs import BUNDLED_JOBS
from flcore.job.contract import Contract
from flcore.job.job import Job

logger = logging.getLogger(__name__)


def resolve_job_directories(entries: Sequence[tuple[str, Path, str]]) -> list[Path]:
    """Return the directories that a site lists.

    Args:
        entries: For each one, as it was written, its path, and the key or option that gives it, for errors. The name of
            a bundled job stands for that job, unless there is a directory of this name.

    Raises:
        JobError: A directory does not exist, or holds no job that can be read.
    """
    found = []
    for written, path, source in entries:
        is_bundled = not path.is_dir() and written == path.name and (BUNDLED_JOBS / written).is_dir()
        directory = BUNDLED_JOBS / written if is_bundled else path
        files = list(_job_files(directory))
        if not files:
            raise JobError(f"{source}: expected a directory with job.toml, or one of such directories, got {path}")
        for file in files:
            try:
                Job.load(file)
            except JobError as error:
                raise JobError(f"{source}: {error}") from error
        found.append(directory.resolve())
    return found


def local_contracts(directories: Sequence[Path]) -> list[Contract]:
    """Return the contracts of the jobs in the directories. One that cannot be read is left out, as it is for offers."""
    found = []
    for file in (file for directory in directories for file in _job_files(directory)):
        with suppress(JobError, OSError):
            found.append(Job.load(file).contract)
    return found


def read_local_jobs(directories: Sequence[Path], offered: Contract) -> list[LocalJob]:
    """Return the jobs in the directories whose name is that of an offered contract.

    The digest of a directory's code covers the files that the offered contract names, as the server's does. A directory
    that cannot be read is logged, and left out.
    """
    found: dict[Path, LocalJob] = {}
    for file in (file for directory in directories for file in _job_files(directory)):
        try:
            job = Job.load(file)
            if job.contract.name == offered.name:
                digest = Job(offered, job.directory).code_digest
                found.setdefault(job.directory, LocalJob(job.directory, job.contract, digest))
        except (JobError, OSError) as error:
            logger.error("%s: this job directory is left out: %s", file.parent, error)
    return list(found.values())


def _job_files(directory: Path) -> Iterator[Path]:
    """Yield the job.toml of a directory, or those of its subdirectories."""
    if (directory / "job.toml").is_file():
        yield directory / "job.toml"
        return
    yield from sorted(directory.glob("*/job.toml"))
