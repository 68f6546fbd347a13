"""Processes of flcore that tests kill and start again. What each prints is in a file."""

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

ROOT = Path(__file__).parents[2]

Process = subprocess.Popen[bytes]


class LoggedProcesses:
    """Processes with a directory in common. As a context manager, it kills what is left of them.

    Args:
        directory: Their working directory. Tests of jobs have the files `executions` and `last-round` there.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._processes: list[Process] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for process in self._processes:
            if process.poll() is None:
                process.kill()
            process.wait()

    def start(self, name: str, module: str, *arguments: str) -> Process:
        """Start a process, whose log has this name."""
        with (self.directory / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", module, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self.environment("executions"),
                cwd=self.directory,
                start_new_session=True,
            )
        self._processes.append(process)
        return process

    def run_job(self, job: Path, out: Path, *options: str) -> None:
        """Run a job within one process, undisturbed."""
        command = [sys.executable, "-m", "flcore", "run", str(job), "--out", str(out), *options]
        environment = self.environment("undisturbed-executions")
        subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def log(self, name: str) -> str:
        """Return what processes of a name have printed."""
        return (self.directory / f"{name}.log").read_text(errors="replace")

    def require_running(self, running: Mapping[str, Process]) -> None:
        """Fail if one of these processes, by name, has ended."""
        ended = [name for name, process in running.items() if process.poll() is not None]
        assert not ended, "\n".join(f"{name} ended by itself:\n{self.log(name)[-2000:]}" for name in ended)

    def environment(self, executions: str) -> dict[str, str]:
        """Return the environment of a process. Clients note each execution of a task in the file `executions`."""
        paths = [str(ROOT / part) for part in ("", "kernels", "transport", "bench")]
        return {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(paths),
            "PYTHONUNBUFFERED": "1",
            "NO_COLOR": "1",
            "EXECUTIONS": str(self.directory / executions),
            "LAST_ROUND": str(self.directory / "last-round"),
        }
