"""Worker processes that host the clients of a run on this machine."""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import IO, Self

from flcore.client.notices import Notify
from flcore.job.job import Job

STOP_TIMEOUT_S = 10.0
DRAIN_TIMEOUT_S = 1.0
LOG_TAIL_BYTES = 2_000

# A worker's libraries must not start as many threads as there are cores for each client.
THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")

# The arguments are this process's `sys.path`; what a worker finds by itself comes after it.
WORKER_PROGRAM = (
    "import sys; sys.path[:] = dict.fromkeys(sys.argv[1:] + sys.path); "
    "from flcore.simulation.worker import main; sys.exit(main())"
)


class WorkerProcesses:
    """Processes that each host some of the clients, as a context: they have ended when it ends.

    A worker that ends with an error while clients are awaited is told to `give_up`, with the end of what it printed;
    what its clients' code did wrong goes to `notify`. A worker lives no longer than this process: its standard input
    closes, and it ends.
    """

    def __init__(
        self, job: Job, names: tuple[str, ...], count: int, address: str, give_up: Callable[[str], None], notify: Notify
    ) -> None:
        self._setups = [
            json.dumps(
                {
                    "contract": job.contract.to_json(),
                    "directory": str(job.directory),
                    "names": names[worker::count],
                    "address": address,
                }
            )
            for worker in range(count)
        ]
        self._give_up, self._notify = give_up, notify
        self._running: list[tuple[subprocess.Popen[str], threading.Thread]] = []

    def __enter__(self) -> Self:
        try:
            for setup in self._setups:
                self._start(setup)
        except BaseException:  # those that have been started end here; the context has not begun
            self.__exit__(*sys.exc_info())
            raise
        return self

    def _start(self, setup: str) -> None:
        process = subprocess.Popen(  # noqa: S603 - it is this Python
            # -P: not the working directory, whose files may be called like modules.
            [sys.executable, "-P", "-c", WORKER_PROGRAM, *importable_directories()],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            encoding="utf-8",
            errors="replace",
            env={**dict.fromkeys(THREAD_VARIABLES, "1"), **os.environ},
        )
        watcher = threading.Thread(target=self._watch, args=(process,), daemon=True)
        watcher.start()
        self._running.append((process, watcher))
        # A worker that has died already is reported by its watcher.
        with suppress(BrokenPipeError):
            assert process.stdin is not None  # noqa: S101 - it is a pipe
            process.stdin.write(setup + "\n")
            process.stdin.flush()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        give_up_at = time.monotonic() + (STOP_TIMEOUT_S if kind is None else 1.0)
        for process, _ in self._running:
            try:
                process.wait(max(0.0, give_up_at - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
        for process, watcher in self._running:
            watcher.join()
            if process.stdin is not None:
                process.stdin.close()

    def _watch(self, process: "subprocess.Popen[str]") -> None:
        assert process.stdout is not None and process.stderr is not None  # noqa: S101, PT018 - they are pipes
        tail = _OutputTail(process.stderr)
        readers = [
            threading.Thread(target=self._read_notices, args=(process.stdout,), daemon=True),
            threading.Thread(target=tail.collect, daemon=True),
        ]
        for reader in readers:
            reader.start()
        code = process.wait()
        give_up_at = time.monotonic() + DRAIN_TIMEOUT_S
        for reader in readers:  # what a worker has started may hold its pipes open, and is not waited for
            reader.join(max(0.0, give_up_at - time.monotonic()))
        if code:
            self._give_up(f"a worker process ended with exit code {code}: {tail.text or 'it printed nothing'}")

    def _read_notices(self, pipe: IO[str]) -> None:
        with pipe:
            for line in pipe:
                with suppress(ValueError):  # what Python's start-up files print
                    kind, text = json.loads(line)
                    self._notify(kind, text)


class _OutputTail:
    """The end of a process's output."""

    def __init__(self, pipe: IO[str]) -> None:
        self._pipe, self._end = pipe, b""

    def collect(self) -> None:
        """Read until the process has closed the pipe."""
        with self._pipe:
            while printed := os.read(self._pipe.fileno(), 1 << 16):
                self._end = (self._end + printed)[-LOG_TAIL_BYTES:]

    @property
    def text(self) -> str:
        """What was printed last."""
        return self._end.decode("utf-8", "replace").strip()


def importable_directories() -> list[str]:
    """Return the directories of this process's `sys.path` for its workers: all but "", the working directory.

    A directory that was put there by name is passed on, wherever it is.
    """
    entries = [entry for entry in sys.path if os.path.normpath(entry) != "."]
    return list(dict.fromkeys(os.path.abspath(entry) for entry in entries))  # noqa: PTH100 - they are str
