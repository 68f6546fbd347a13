"""Processes for jobs, of which one is kept warm: it has done its imports, and waits for the setup of a job."""

import os
import subprocess
import threading
from collections.abc import Mapping

from flcore.agent.process_group import ProcessGroup
from flcore.child_process import python_command
from flcore.errors import JobError
from flcore.text import printable
from flcore.version import __version__

JOB_MODULE = "flcore.agent.job_process"

CHECK_TIMEOUT_S = 120.0
"""Seconds in which a Python must have imported flcore: a first import from a network file system is slow."""

CHECK_PROGRAM = f"import sys, flcore.version as found, {JOB_MODULE}; sys.stdout.write(found.__version__)"


class StandbyProcesses:
    """Starts the processes of jobs. Methods may be called from any thread.

    Args:
        python: The Python of the site's environment for jobs. None: the agent's own.
        gpus: The value of CUDA_VISIBLE_DEVICES. None: as for the agent.
    """

    def __init__(self, python: str | None, gpus: str | None) -> None:
        self._command = python_command(JOB_MODULE, python)
        self._environment = job_environment(python, gpus)
        self._lock = threading.Lock()
        self._warm: ProcessGroup | None = None
        self._is_closed = False

    def take(self) -> ProcessGroup:
        """Return a process that waits for its setup: the warm one, or a new one. Raises `OSError`."""
        with self._lock:
            warm, self._warm = self._warm, None
        if warm is not None and not _has_ended(warm):
            return warm
        if warm is not None:
            warm.discard()
        return ProcessGroup(self._command, self._environment)

    def refill(self) -> None:
        """Start the next warm process, if there is none. Raises `OSError`."""
        if not self._needs_one():
            return
        started = ProcessGroup(self._command, self._environment)
        with self._lock:
            is_needed = self._needs_one()
            if is_needed:
                self._warm = started
        if not is_needed:
            started.discard()

    def _needs_one(self) -> bool:
        return self._warm is None and not self._is_closed

    def close(self) -> None:
        """End the warm process."""
        with self._lock:
            warm, self._warm, self._is_closed = self._warm, None, True
        if warm is not None:
            warm.discard()


def require_python(python: str) -> None:
    """Raise `JobError` unless a Python exists and has this version of flcore."""
    environment = job_environment(python, None)
    try:
        done = subprocess.run(  # noqa: S603 - the site's owner has named it
            [python, "-P", "-c", CHECK_PROGRAM],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=CHECK_TIMEOUT_S,
            env=environment,
            check=False,
        )
    except OSError as error:
        raise JobError(
            f"python: expected the Python of an environment with flcore {__version__}, got {python}: "
            f"{error.strerror or error}; correct it in site.toml"
        ) from error
    except subprocess.TimeoutExpired as error:
        raise JobError(f"python: {python} has not imported flcore within {CHECK_TIMEOUT_S:.0f} s; try it") from error
    found = done.stdout.decode("utf-8", "replace")
    if done.returncode:
        last = (done.stderr.decode("utf-8", "replace").strip().splitlines() or ["it printed nothing"])[-1]
        raise JobError(
            f"python: expected a Python 3.11 or newer with flcore {__version__}, got {python}, which cannot import it: "
            f"{printable(last)}; install flcore there"
        )
    if found != __version__:
        raise JobError(
            f"python: expected flcore {__version__}, as the agent has, got {printable(found, 40)} at {python}; install "
            "the same version in both"
        )


def job_environment(python: str | None, gpus: str | None) -> Mapping[str, str]:
    """Return the environment variables of a job's process."""
    environment = dict(os.environ)
    environment["PYTHONUNBUFFERED"] = "1"  # what a job has printed is in its log when it crashes
    if gpus is not None:
        environment["CUDA_VISIBLE_DEVICES"] = gpus
    if python is not None:  # the agent's own modules are not the other environment's
        for name in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV"):
            environment.pop(name, None)
    return environment


def _has_ended(process: ProcessGroup) -> bool:
    return os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
