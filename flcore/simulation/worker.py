"""A worker process, which hosts some clients of a run. `worker_processes` starts it, with its setup on stdin.

Its standard output carries notices to the run, one JSON list per line; all other output goes to standard error.
"""

import json
import os
import sys
import threading
from concurrent.futures import FIRST_EXCEPTION, wait
from pathlib import Path

from flcore_transport import GrpcConnection

from flcore.client.client import Client
from flcore.client.executor import Executor
from flcore.client.notices import Notify
from flcore.client.task import Site
from flcore.errors import FlcoreError
from flcore.job.job import Job
from flcore.job.parsing import contract_from_json
from flcore.process import keep_freed_memory


def main() -> int:
    """Host the clients until the server has said goodbye to all of them. A client that fails ends the worker."""
    keep_freed_memory()
    notify = _notices_to_parent()
    setup = json.loads(sys.stdin.readline())
    threading.Thread(target=_end_with_parent, daemon=True).start()
    contract = contract_from_json(setup["contract"], "the run's contract")
    job = Job(contract, Path(setup["directory"]))
    try:
        executors = [Executor(job, Site(name, contract.client_names, contract.seed), notify) for name in setup["names"]]
        clients = [Client(job, executor, GrpcConnection(setup["address"])) for executor in executors]
        ended, _ = wait([client.start() for client in clients], return_when=FIRST_EXCEPTION)
        for future in ended:
            future.result()
    except FlcoreError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def _notices_to_parent() -> Notify:
    """Reserve standard output for notices, and redirect prints of the job's code to standard error."""
    descriptor = os.dup(sys.stdout.fileno())
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    lock = threading.Lock()

    def notify(kind: str, text: str) -> None:
        line = memoryview(json.dumps([kind, text]).encode() + b"\n")
        with lock:
            while line:
                line = line[os.write(descriptor, line) :]

    return notify


def _end_with_parent() -> None:
    """End this process when its stdin closes, which happens when the parent ends."""
    os.read(sys.stdin.fileno(), 1)
    os._exit(1)
