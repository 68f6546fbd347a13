"""The directory in which an agent keeps its jobs: their updates, their packs, their logs.

client.lock                locked by the agent's process
jobs/ID/offer.json         which federation, pack and contract the rest belongs to
jobs/ID/pack.flpack        the pack, with `jobs = "signed"`
jobs/ID/job/               its files
jobs/ID/state/             the client's state directory
jobs/ID/scratch/           the working directory of the job's process
logs/ID.log                what the job has printed; older parts have a number after their name
"""

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from flcore.agent.job_log import JobLog, remove_old_logs
from flcore.client.private_files import write_synced
from flcore.client.state_directory import lock_directory
from flcore.errors import JobError
from flcore.federation.lobby_messages import JobOffer

KEPT_LOGS = 10
"""The logs of so many jobs that are over stay at the site."""

OFFER_FILE = "offer.json"
REMOVED_PREFIX = ".removed-"


@dataclass(frozen=True)
class JobDirectory:
    """The directory of one job."""

    path: Path

    @property
    def pack(self) -> Path:
        """The file of the pack."""
        return self.path / "pack.flpack"

    @property
    def code(self) -> Path:
        """The directory of the pack's files."""
        return self.path / "job"

    @property
    def state(self) -> Path:
        """The client's state directory."""
        return self.path / "state"

    @property
    def work(self) -> Path:
        """The working directory of the process."""
        return self.path / "scratch"


class AgentDirectory:
    """An agent's directory, which this process owns.

    Args:
        path: The directory. It is created if missing, for its owner alone: updates are private.

    Raises:
        JobError: Another process uses the directory, or it cannot be written to.
    """

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        self._jobs, self._logs = self.path / "jobs", self.path / "logs"
        try:
            for directory in (self.path, self._jobs, self._logs):
                directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock = lock_directory(self.path)
            for left in self._jobs.glob(f"{REMOVED_PREFIX}*"):
                shutil.rmtree(left, ignore_errors=True)
        except OSError as error:
            raise JobError(
                f"expected a directory that can be written to, got {path}: {error.strerror}; give another one (--state)"
            ) from error

    def close(self) -> None:
        """Unlock the directory."""
        os.close(self._lock)

    def prepare(self, offer: JobOffer) -> JobDirectory:
        """Return the directory of an offered job, with what it holds of this job and nothing of another one.

        A federation that was set up anew gives the ids of its jobs again.
        """
        directory = JobDirectory(self._jobs / offer.id)
        owner = json.dumps(
            {"federation": offer.federation, "pack": offer.pack_digest, "contract": offer.contract_fingerprint}
        ).encode()
        file = directory.path / OFFER_FILE
        if not (file.is_file() and file.read_bytes() == owner):
            self.remove(offer.id)
            directory.path.mkdir(mode=0o700)
            write_synced(file, owner)
        directory.work.mkdir(mode=0o700, exist_ok=True)
        return directory

    def job_ids(self) -> set[str]:
        """Return the ids of the jobs with a directory."""
        return {path.name for path in self._jobs.iterdir() if not path.name.startswith(".")}

    def log(self, job_id: str) -> JobLog:
        """Return the log of a job."""
        return JobLog(self._logs / f"{job_id}.log")

    def remove(self, job_id: str) -> None:
        """Remove the directory of a job, if there is one."""
        path, hidden = self._jobs / job_id, self._jobs / f"{REMOVED_PREFIX}{job_id}"
        if path.exists():
            shutil.rmtree(hidden, ignore_errors=True)
            path.rename(hidden)  # a directory that is half removed is never taken for a job's
            shutil.rmtree(hidden, ignore_errors=True)

    def remove_old_logs(self) -> None:
        """Keep the logs of the jobs with a directory, and of `KEPT_LOGS` others."""
        remove_old_logs(self._logs, KEPT_LOGS, self.job_ids())
