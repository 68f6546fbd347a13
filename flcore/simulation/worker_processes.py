"""Worker processes that host the clients of a run on this machine."""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from flcore.child_process import python_command
from flcore.client.notices import Notify
from flcore.job.job import Job
from flcore.progress import ProgressSink, TaskProgress

STOP_TIMEOUT_S = 10.0
"""Seconds that workers have to end after the server's goodbye, before they are killed."""

ERROR_STOP_TIMEOUT_S = 1.0
"""The same if the run has failed or was interrupted."""

DRAIN_TIMEOUT_S = 1.0
"""Seconds to read the remaining output of a worker that has ended; its children may hold the pipes open."""

INTERRUPTED = 130
"""The exit code of a worker that Ctrl-C has ended."""

INTERRUPT_GRACE_S = 1.0
"""Seconds that the run has to end by the same Ctrl-C, before an interrupted worker is taken for a failed one."""

LOG_TAIL_BYTES = 2_000
"""Bytes of a failed worker's output in the error."""

# A worker's libraries must not start as many threads as there are cores for each client.
THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


class WorkerProcesses:
    """Processes that each host some of the clients, as a context. They have ended when the context ends.

    If a worker ends with an error, `give_up` is called with the tail of its output. Notices of its clients go to
    `notify`, their progress to `on_progress`. A worker ends with this process, because its standard input closes.
    """

    def __init__(
        self,
        job: Job,
        state: Path,
        count: int,
        address: str,
        give_up: Callable[[str], None],
        notify: Notify,
        on_progress: ProgressSink,
    ) -> None:
        self._setups = [
            json.dumps(
                {
                    "contract": job.contract.to_json(),
                    "directory": str(job.directory),
                    "names": job.contract.client_names[worker::count],
                    "state": str(state),
                    "address": address,
                }
            )
            for worker in range(count)
        ]
        self._give_up, self._notify, self._on_progress = give_up, notify, on_progress
        self._running: list[tuple[subprocess.Popen[str], threading.Thread]] = []
        self._is_ending = threading.Event()

    def __enter__(self) -> Self:
        try:
            for setup in self._setups:
                self._start(setup)
        except BaseException:  # end the started ones here: `__exit__` is not called if `__enter__` raises
            self.__exit__(*sys.exc_info())
            raise
        return self

    def _start(self, setup: str) -> None:
        process = subprocess.Popen(  # noqa: S603 - it is this Python
            python_command("flcore.simulation.worker"),
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
        self._is_ending.set()
        ends_by = time.monotonic() + (STOP_TIMEOUT_S if kind is None else ERROR_STOP_TIMEOUT_S)
        for process, _ in self._running:
            try:
                process.wait(max(0.0, ends_by - time.monotonic()))
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
            threading.Thread(target=self._read_messages, args=(process.stdout,), daemon=True),
            threading.Thread(target=tail.collect, daemon=True),
        ]
        for reader in readers:
            reader.start()
        code = process.wait()
        ends_by = time.monotonic() + DRAIN_TIMEOUT_S
        for reader in readers:  # bounded: a child of the worker may hold its pipes open
            reader.join(max(0.0, ends_by - time.monotonic()))
        if code == INTERRUPTED:  # Ctrl-C reaches the whole process group: this process is about to end the run
            self._is_ending.wait(INTERRUPT_GRACE_S)
        if code:
            self._give_up(f"a worker process ended with exit code {code}: {tail.text or 'it printed nothing'}")

    def _read_messages(self, pipe: IO[str]) -> None:
        with pipe:
            for line in pipe:
                with suppress(ValueError):  # lines that are no messages, such as prints of Python's start-up files
                    self._receive(json.loads(line))

    def _receive(self, message: object) -> None:
        match message:
            case ["notice", str(kind), str(text)]:
                self._notify(kind, text)
            case ["progress", str(client), str(task), int(number), int(rounds), float(done), float(total)]:
                self._on_progress(TaskProgress(client, task, number, rounds, done, total))


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
        """The last `LOG_TAIL_BYTES` of output."""
        return self._end.decode("utf-8", "replace").strip()
