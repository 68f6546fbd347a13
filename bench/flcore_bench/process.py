"""Child processes for measurements: fresh memory, a clean environment, and where needed another interpreter."""

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

from flcore import FlcoreError
from flcore_bench.internals import keep_freed_memory

STOP_TIMEOUT_S = 20.0
THREADING_PREFIXES = ("OPENBLAS_", "GOTO_", "MKL_", "OMP_", "BLIS_", "NUMBA_")
"""Prefixes of environment variables that configure the threads of other libraries."""


class MeasurementFailed(FlcoreError):
    """A process that measures ended without a result."""


def benchmark_environment(threads: int) -> dict[str, str]:
    """Return this process's environment with flcore's threads set and the variables of other libraries removed.

    A variable that limits a BLAS to one thread would make a baseline look slower than it is.
    """
    kept = {name: value for name, value in os.environ.items() if not name.startswith(THREADING_PREFIXES)}
    return kept | {"FLCORE_THREADS": str(threads)}


def run_in_process(
    module: str,
    *arguments: str,
    threads: int,
    python: Path | None = None,
    environment: Mapping[str, str] | None = None,
) -> Any:
    """Run `main` of a module in a new process to its end.

    Args:
        module: The module to import there.
        arguments: Command-line arguments. The number of threads follows them.
        threads: Threads of flcore in the process.
        python: The interpreter (default: this one).
        environment: Additional environment variables.

    Returns:
        The JSON in the last line of its standard output.

    Raises:
        MeasurementFailed: The interpreter cannot be started, or the process ended with an error.
    """
    program = f"from {module} import main; main()"
    command = [str(python or sys.executable), "-c", program, *arguments, str(threads)]
    settings = benchmark_environment(threads) | dict(environment or {})
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True, env=settings)  # noqa: S603 - our own program
    except OSError as error:
        raise MeasurementFailed(f"{command[0]} cannot be run: {error.strerror}") from error
    except subprocess.CalledProcessError as error:
        raise MeasurementFailed(
            f"{module} {' '.join(arguments)} in {command[0]} ended with code {error.returncode}; its error is above"
        ) from error
    return json.loads(done.stdout.splitlines()[-1])


class ChildProcess:
    """A process that runs `main` of a module and exchanges messages with this one. It ends with the context.

    The setup goes to its standard input as one line of JSON. Each message from it is one line of JSON on its standard
    output. It ends when its standard input closes, so it never outlives this process.

    Args:
        module: The module to import there. Its `main` calls `receive_setup` first.
        setup: The setup, as JSON's types.
        threads: Threads of flcore in the process.
        group: The file of a cgroup that it joins first (see `cgroup_limit`).
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
            env=benchmark_environment(self._threads),
        )
        # If the process has died already, `receive` reports it.
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

    def receive(self) -> Any:
        """Wait for its next message, and return it.

        Raises:
            MeasurementFailed: It ended without sending one.
        """
        assert self._process.stdout is not None  # noqa: S101 - it is a pipe
        line = self._process.stdout.readline()
        if not line:
            code = self._process.wait()
            raise MeasurementFailed(f"{self._module} ended with code {code}; its error is above")
        return json.loads(line)


def receive_setup() -> Any:
    """In a child process: return the setup. From now on, the process ends when its parent does.

    Keeps freed memory in the process, as `flcore server` and `flcore client` do.
    """
    keep_freed_memory()
    setup = json.loads(sys.stdin.readline())
    threading.Thread(target=_end_with_parent, daemon=True).start()
    # A thousand clients need a thousand sockets.
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    return setup


def send_to_parent(message: Any) -> None:
    """In a child process: print a message as one line of JSON."""
    print(json.dumps(message), flush=True)


def _end_with_parent() -> None:
    # Reads the descriptor: a daemon thread that holds the lock of `sys.stdin` would block Python's shutdown.
    os.read(sys.stdin.fileno(), 1)
    os._exit(0)
