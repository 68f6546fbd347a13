"""A worker process: hosts some clients of a run on this machine. Started by `workers`, with its setup on stdin."""

import json
import os
import signal
import sys
import threading
from pathlib import Path

from flcore_transport import GrpcConnection, TransportError

from flcore.client.client import Client
from flcore.client.executor import Executor
from flcore.client.task import Site
from flcore.errors import FlcoreError
from flcore.job.job import Job
from flcore.job.parsing import contract_from_json


def main() -> int:
    """Host the clients until the server says goodbye to all of them."""
    setup = json.loads(sys.stdin.readline())
    threading.Thread(target=_end_with_parent, daemon=True).start()
    contract = contract_from_json(setup["contract"], "the run's contract")
    job = Job(contract, Path(setup["directory"]))
    failures: list[str] = []

    def host(name: str) -> None:
        try:
            executor = Executor(job, Site(name, contract.client_names, contract.seed))
            Client(job, executor, GrpcConnection(setup["address"])).run()
        except (FlcoreError, TransportError) as error:
            # Nobody can repair it here, and the server waits: the whole worker ends, and says why.
            failures.append(f"client {name!r}: {error}")
            _interrupt()

    threads = [threading.Thread(target=host, args=(name,), daemon=True) for name in setup["names"]]
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    except KeyboardInterrupt:
        print("\n".join(failures) or "interrupted", file=sys.stderr)
        return 1
    return 0


def _end_with_parent() -> None:
    """Wait for the end of stdin, which is the end of the parent, and interrupt this process."""
    # Not sys.stdin: its lock, held by a sleeping thread, would abort the interpreter's exit.
    os.read(sys.stdin.fileno(), 1)
    _interrupt()


def _interrupt() -> None:
    """Interrupt the main thread, which sleeps: a signal raised in this thread would not wake it."""
    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)


if __name__ == "__main__":
    sys.exit(main())
