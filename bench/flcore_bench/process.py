"""A process that measures or is measured: its setup comes on standard input as one line of JSON, its answers leave on
standard output, a line each. It lives no longer than the process that started it, as its standard input then ends.
"""

import json
import os
import resource
import subprocess
import sys
import threading
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from flcore_bench.child import MeasurementFailed, measuring_environment
from flcore_bench.inside import keep_freed_memory

STOP_TIMEOUT_S = 20.0


class Process:
    """A process that runs `main` of `module`, as a context: it has ended when the context ends.

    It first joins the group whose file `group` is, if any (see `confinement`).
    """

    def __init__(self, module: str, setup: Mapping[str, Any], threads: int, group: Path | None = None) -> None:
        self._module, self._setup, self._threads = module, json.dumps(setup), threads
        join = "" if group is None else f"open({str(group)!r}, 'w').write('0'); "
        self._program = f"{join}from {module} import main; main()"

    def __enter__(self) -> Self:
        command = [sys.executable, "-c", self._program]
        self._process = subprocess.Popen(  # noqa: S603 - our own program
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=measuring_environment(self._threads),
        )
        # A process that has died already is noticed when its answer is read.
        with suppress(BrokenPipeError):
            assert self._process.stdin is not None  # noqa: S101 - it is a pipe
            self._process.stdin.write(self._setup + "\n")
            self._process.stdin.flush()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None  # noqa: S101, PT018 - they are pipes
        with suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()

    def answer(self) -> Any:
        """Wait for its next line, and return the JSON in it. Raises `MeasurementFailed` if it ends without one."""
        assert self._process.stdout is not None  # noqa: S101 - it is a pipe
        line = self._process.stdout.readline()
        if not line:
            code = self._process.wait()
            raise MeasurementFailed(f"{self._module} ended with code {code}; it said why above")
        return json.loads(line)


def setup_from_parent() -> Any:
    """Return this process's setup, and from now on end with the process that gave it; as `flcore server` and
    `flcore client` do, keep memory that was freed.
    """
    keep_freed_memory()
    setup = json.loads(sys.stdin.readline())
    threading.Thread(target=_end_with_parent, daemon=True).start()
    # A thousand clients are a thousand sockets.
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    return setup


def tell_parent(answer: Any) -> None:
    """Print an answer as one line of JSON."""
    print(json.dumps(answer), flush=True)


def _end_with_parent() -> None:
    # Not through `sys.stdin`, whose lock a daemon thread must not hold when Python ends.
    os.read(sys.stdin.fileno(), 1)
    os._exit(0)
