"""`flcore.run`: a job's server and all its clients on this machine."""

import os
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from contextlib import ExitStack, contextmanager
from pathlib import Path

import flcore_transport
from flcore_transport import InProcessConnection, InProcessServer, Service

from flcore.client.client import Client
from flcore.client.executor import Executor, require_tasks
from flcore.client.notices import NoticeLogger, Notify
from flcore.client.task import Site
from flcore.job.job import Job
from flcore.model.model_paths import require_directory
from flcore.process import require_native_threads, require_own_grpc
from flcore.server.events import Observer, ignore_events
from flcore.server.federation import Federation
from flcore.server.serve import Outcome, Server, serve
from flcore.simulation.worker_processes import WorkerProcesses

MAX_WORKERS = 8


def run(
    job: "str | os.PathLike[str] | Job",
    *,
    clients: int | None = None,
    workers: int | None = None,
    rounds: int | None = None,
    seed: int | None = None,
    out: str | os.PathLike[str] | None = None,
    fresh: bool = False,
    observe: Observer = ignore_events,
) -> Outcome:
    """Run a job with all its clients on this machine, and return its history and its last model.

    `job` is a directory with job.toml or the name of a bundled job; `clients`, `rounds` and `seed` replace what its
    contract says. `workers` processes host the clients and talk to the server over gRPC on loopback (one process for
    each client, and at most 8, if None); with 0, threads of this process do, without a socket. Files are written to the
    directory `out`, if given: history.jsonl, model.safetensors, best.safetensors. One that holds an earlier run is
    refused (`RunExists`), unless `fresh` says to keep that run beside it, as `NAME.1`.

    Raises `FlcoreError`: `JobError` for a job that cannot be run or an `out` that cannot be written to, `QuorumError`
    for a round without enough updates. The traceback of a client's code is logged, once for each place where it fails.

        history, model = flcore.run("digits")
        history[-1].validate["accuracy"]
    """
    loaded = Job.load(Path(job) if not isinstance(job, Job) else job, clients=clients, rounds=rounds, seed=seed)
    require_tasks(loaded)
    names = loaded.contract.client_names
    count = min(len(names), MAX_WORKERS) if workers is None else min(workers, len(names))
    if count < 0:
        raise ValueError(f"workers is a number >= 0, not {workers}")
    directory = None if out is None else require_directory(out)
    require_native_threads("flcore.run")
    if count:
        require_own_grpc("flcore.run")
    notify = NoticeLogger()
    with ExitStack() as stack:

        def listen(service: Service) -> Server:
            # gRPC is imported here, with its first use.
            return flcore_transport.GrpcServer(service) if count else InProcessServer(service)

        def started(server: Server, federation: Federation) -> None:
            if isinstance(server, InProcessServer):
                stack.enter_context(_client_threads(loaded, names, server, federation.rounds.give_up, notify))
            else:
                stack.enter_context(
                    WorkerProcesses(loaded, names, count, server.address, federation.rounds.give_up, notify)
                )

        return serve(
            loaded, listen, started=started, wait_for=len(names), directory=directory, fresh=fresh, observe=observe
        )


@contextmanager
def _client_threads(
    job: Job, names: tuple[str, ...], server: InProcessServer, give_up: Callable[[str], None], notify: Notify
) -> Iterator[None]:
    """Host every client in a thread of its own, until the server has said goodbye to all."""
    executors = [Executor(job, Site(name, names, job.contract.seed), notify) for name in names]
    clients = [Client(job, executor, InProcessConnection(server)) for executor in executors]

    def ended(future: "Future[str]") -> None:
        if error := future.exception():
            give_up(str(error))

    futures = [client.start() for client in clients]
    for future in futures:
        future.add_done_callback(ended)
    try:
        yield
    finally:
        for client in clients:
            client.stop()
        wait(futures)
