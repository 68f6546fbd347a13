"""A worker process: hosts some clients of a run on this machine. Started by `workers`, with its setup on stdin."""

import json
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
            failures.append(f"client {name!r}: {error}")

    threads = [threading.Thread(target=host, args=(name,), daemon=True) for name in setup["names"]]
    for thread in threads:
        thread.start()
    try:
        for thread in threads:
            thread.join()
    except KeyboardInterrupt:
        return 130
    print("\n".join(failures), file=sys.stderr)
    return 1 if failures else 0


def _end_with_parent() -> None:
    """Wait for the end of stdin, which is the end of the parent, and interrupt this process."""
    sys.stdin.read()
    signal.raise_signal(signal.SIGINT)


if __name__ == "__main__":
    sys.exit(main())
