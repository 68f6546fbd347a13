"""A job's process with its children: one process group, which ends as a whole."""

import os
import signal
import subprocess
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress

PATIENCE_S = 5.0
"""Seconds that a process has to end after SIGTERM, until SIGKILL."""


class ProcessGroup:
    """A process in a session and a group of its own, so that Ctrl-C at the agent's terminal does not reach it.

    Its standard input stays open until the process has ended or the agent has.

    Args:
        command: The command.
        environment: The environment.

    Raises:
        OSError: The command cannot be started.
    """

    def __init__(self, command: Sequence[str], environment: Mapping[str, str]) -> None:
        self._process = subprocess.Popen(  # noqa: S603 - flcore's own module, in this Python or the site's
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
            env=environment,
            start_new_session=True,
        )
        self.pid = self._process.pid
        self._lock = threading.Lock()
        self._is_reaped = False

    @property
    def messages(self) -> int:
        """The descriptor of its standard output."""
        assert self._process.stdout is not None  # noqa: S101 - it is a pipe
        return self._process.stdout.fileno()

    @property
    def printed(self) -> int:
        """The descriptor of its standard error."""
        assert self._process.stderr is not None  # noqa: S101 - it is a pipe
        return self._process.stderr.fileno()

    def write_line(self, line: bytes) -> None:
        """Write a line to its standard input. A process that has ended already takes nothing."""
        assert self._process.stdin is not None  # noqa: S101 - it is a pipe
        rest = memoryview(line + b"\n")
        with suppress(BrokenPipeError):
            while rest:
                rest = rest[self._process.stdin.write(rest) or 0 :]

    def wait(self) -> int:
        """Wait until the process has ended, then kill what is left of its group. Return its exit code.

        The code of a process that a signal has ended is the negative number of the signal.
        """
        # The zombie keeps the number of its group from being given to another one while the group is killed.
        os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)
        with self._lock:
            self._kill(signal.SIGKILL)
            code = self._process.wait()
            self._is_reaped = True
        return code

    def end(self, patience_s: float = PATIENCE_S) -> None:
        """Send SIGTERM to the group, and SIGKILL if the process has not ended after a while. Returns at once."""
        self._signal(signal.SIGTERM)
        killer = threading.Timer(patience_s, self.kill)
        killer.daemon = True
        killer.start()

    def kill(self) -> None:
        """Send SIGKILL to the group, unless the process has ended."""
        self._signal(signal.SIGKILL)

    def _signal(self, number: int) -> None:
        with self._lock:
            if not self._is_reaped:
                self._kill(number)

    def close(self) -> None:
        """Close the pipes. Called after `wait`, when nobody reads them any more."""
        for pipe in (self._process.stdin, self._process.stdout, self._process.stderr):
            if pipe is not None:
                pipe.close()

    def discard(self) -> None:
        """Kill the group, and close its pipes."""
        self.kill()
        self.wait()
        self.close()

    def _kill(self, number: int) -> None:
        with suppress(ProcessLookupError, PermissionError):  # macOS: EPERM for a group of zombies
            os.killpg(self.pid, number)


def describe_exit(code: int) -> str:
    """Return an exit code in words.

    >>> describe_exit(3), describe_exit(-11)
    ('exit code 3', 'SIGSEGV')
    """
    if code >= 0:
        return f"exit code {code}"
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"
