"""Jobs under supervision in tests: what their code does when it is loaded, and what becomes of their processes."""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flcore.agent.job_log import JobLog
from flcore.agent.job_process import JobSetup
from flcore.agent.standby import StandbyProcesses
from flcore.agent.supervised_job import Ending, SupervisedJob
from flcore.federation.messages import SiteProgress
from flcore.job.parsing import parse_contract

CONTRACT = {
    "name": "odd",
    "clients": 3,
    "server": {"model": "odd.py:init", "rounds": 10},
    "client": {"executor": "odd.py"},
    "tasks": {"train": {"returns": "weights"}},
}


@dataclass
class Told:
    """What a job's supervision has told: the server, the site's owner, and the agent."""

    printed_bytes: int = 0
    errors: list[str] = field(default_factory=list)
    reports: list[SiteProgress] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)
    shown: list[str] = field(default_factory=list)
    endings: list[Ending] = field(default_factory=list)

    def printed(self, output: bytes) -> None:
        self.printed_bytes += len(output)

    def error(self, text: str) -> None:
        self.errors.append(text)

    def progress(self, progress: SiteProgress) -> None:
        self.reports.append(progress)


@dataclass
class Supervised:
    """A job that is being supervised in a directory of the test's."""

    job: SupervisedJob
    told: Told
    log: Path
    work: Path

    def ending(self, timeout_s: float = 100.0) -> Ending:
        self.job._thread.join(timeout_s)
        [ending] = self.told.endings
        return ending

    def noted(self, name: str, timeout_s: float = 60.0) -> int:
        """Wait until the job's code has written a number into a file of its working directory; return it."""
        self.wait_until(lambda: (self.work / name).exists() and (self.work / name).read_text(), timeout_s)
        return int((self.work / name).read_text())

    def wait_until(self, is_so: Callable[[], object], timeout_s: float = 60.0) -> None:
        """Wait until something is so; fail with the log of the job if it does not come."""
        until = time.monotonic() + timeout_s
        while not is_so():
            assert time.monotonic() < until, self.log.read_text() if self.log.exists() else "no log"
            time.sleep(0.01)


def job_setup(directory: Path, code: str, **changes: Any) -> JobSetup:
    """Write a job into a directory; return the setup of its process."""
    for name in ("job", "work"):
        (directory / name).mkdir(parents=True, exist_ok=True)
    (directory / "job/odd.py").write_text(code)
    values: dict[str, Any] = {
        "id": "odd-1",
        "contract": parse_contract(CONTRACT, "the test's").to_json(),
        "directory": str(directory / "job"),
        "client": "north",
        "address": "localhost:1",
        "keys": None,
        "allow_remote": False,
        "site_file": None,
        "state": str(directory / "state"),
        "work": str(directory / "work"),
        "memory_bytes": None,
        "max_rounds": None,
        "shares_errors": True,
    }
    return JobSetup(**values | changes)


@contextmanager
def supervised(directory: Path, code: str, **changes: Any) -> Iterator[Supervised]:
    """Supervise a job while the block lasts."""
    processes, told = StandbyProcesses(None, None), Told()
    log = JobLog(directory / "odd-1.log")
    setup = job_setup(directory, code, **changes)
    job = SupervisedJob(setup, processes, log, told, told.notices.append, told.shown.append, told.endings.append)
    job.start()
    try:
        yield Supervised(job, told, log.path, directory / "work")
    finally:
        job.stop()
        job.join()
        processes.close()


def is_alive(pid: int) -> bool:
    """Whether a process exists and is no zombie."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


def wait_until_gone(pid: int, timeout_s: float = 30.0) -> None:
    """Wait until a process is gone; fail if it stays."""
    until = time.monotonic() + timeout_s
    while is_alive(pid):
        assert time.monotonic() < until, f"process {pid} of {os.getpid()} is still there"
        time.sleep(0.01)
