"""A worker process, which hosts some clients of a run. `worker_processes` starts it, with its setup on stdin.

Its standard output carries notices and progress to the run, one JSON list per line; all other output goes to standard
error.
"""

import json
import sys
from concurrent.futures import FIRST_EXCEPTION, wait
from pathlib import Path

from flcore_transport import GrpcConnection

from flcore.child_process import MessagesToParent, end_with_parent
from flcore.client.client import Client
from flcore.client.executor import Executor
from flcore.client.task import Site
from flcore.errors import FlcoreError
from flcore.job.job import Job
from flcore.job.parsing import contract_from_json
from flcore.process import keep_freed_memory
from flcore.progress import TaskProgress


def main() -> int:
    """Host the clients until the server has said goodbye to all of them. A client that fails ends the worker."""
    keep_freed_memory()
    to_parent = MessagesToParent()
    setup = json.loads(sys.stdin.readline())
    end_with_parent()

    def notify(kind: str, text: str) -> None:
        to_parent.send(["notice", kind, text])

    def tell_progress(now: TaskProgress) -> None:
        to_parent.send_if_room(["progress", now.client, now.task, now.round, now.rounds, now.done, now.total])

    contract = contract_from_json(setup["contract"], "the run's contract")
    job, state = Job(contract, Path(setup["directory"])), Path(setup["state"])
    try:
        sites = [
            Site(name, contract.client_names, contract.seed, state_directory=state / name) for name in setup["names"]
        ]
        executors = [Executor(job, site, notify, on_progress=tell_progress) for site in sites]
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
