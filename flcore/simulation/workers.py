"""Worker processes that host the clients of a run on this machine."""

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import IO, Self

from flcore.job.job import Job

STOP_TIMEOUT_S = 10.0
LOG_TAIL_BYTES = 2_000

# A worker's libraries must not start as many threads as there are cores for each client.
THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


class Workers:
    """Processes that each host some of the clients, as a context: they have ended when it ends.

    A worker that ends with an error while clients are awaited is told to `give_up`, with the end of what it printed. A
    worker lives no longer than this process: its standard input closes, and it ends.
    """

    def __init__(
        self, job: Job, names: tuple[str, ...], count: int, address: str, give_up: Callable[[str], None]
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
        self._give_up = give_up
        self._running: list[tuple[subprocess.Popen[str], threading.Thread]] = []

    def __enter__(self) -> Self:
        environment = {**dict.fromkeys(THREAD_VARIABLES, "1"), **os.environ}
        for setup in self._setups:
            log = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")
            process = subprocess.Popen(
                [sys.executable, "-m", "flcore.simulation.worker"],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                text=True,
                env=environment,
            )
            watcher = threading.Thread(target=self._watch, args=(process, log), daemon=True)
            watcher.start()
            self._running.append((process, watcher))
            # A worker that has died already is reported by its watcher.
            with suppress(BrokenPipeError):
                assert process.stdin is not None  # noqa: S101 - it is a pipe
                process.stdin.write(setup + "\n")
                process.stdin.flush()
        return self

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

    def _watch(self, process: "subprocess.Popen[str]", log: IO[str]) -> None:
        code = process.wait()
        log.seek(0)
        printed = log.read()[-LOG_TAIL_BYTES:].strip()
        log.close()
        if code:
            self._give_up(f"a worker process ended with exit code {code}: {printed or 'it printed nothing'}")
