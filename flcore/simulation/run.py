"""`flcore.run`: a job's server and all its clients on this machine."""

import os
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from contextlib import ExitStack, contextmanager
from pathlib import Path

import flcore_transport
from flcore_transport import InProcessConnection, InProcessServer, Service

from flcore.aggregation.budget import DEFAULT_BUDGET
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
    """Run a job's server and all its clients on this machine.

    Args:
        job: A directory with job.toml, the name of a bundled job, or a `Job`.
        clients: The number of clients. Default: None, that of the contract.
        workers: The number of processes that host the clients and talk to the server over gRPC on loopback. 0: threads
            of this process, without a socket. Default: None, one process per client, at most 8.
        rounds: The number of rounds. Default: None, that of the contract.
        seed: The seed of the job. Default: None, that of the contract.
        out: The directory for history.jsonl, model.safetensors and best.safetensors. Default: None, no files.
        fresh: Rename an earlier run in `out` to `NAME.1`, instead of raising `RunExists`. Default: False.
        observe: Called with each event of the server. Default: ignores them.

    Returns:
        The history, one record per round, and the last model.

    Raises:
        JobError: The job cannot be run, or `out` cannot be written to.
        RunExists: `out` holds an earlier run, and `fresh` is False.
        BudgetError: `out` is given, and the server might need more memory than there is.
        QuorumError: A round has too few updates. The traceback of a client's code is logged, once for each place where
            it fails.
        ValueError: `workers` is negative.

    Example:
        >>> history, model = flcore.run("digits")  # doctest: +SKIP
        >>> history[-1].validate["accuracy"]  # doctest: +SKIP
    """
    loaded = Job.load(Path(job) if not isinstance(job, Job) else job, clients=clients, rounds=rounds, seed=seed)
    require_tasks(loaded)
    names = loaded.contract.client_names
    worker_count = min(len(names), MAX_WORKERS) if workers is None else min(workers, len(names))
    if worker_count < 0:
        raise ValueError(f"workers is a number >= 0, not {workers}")
    directory = None if out is None else require_directory(out)
    require_native_threads("flcore.run")
    if worker_count:
        require_own_grpc("flcore.run")
    notify = NoticeLogger()
    with ExitStack() as stack:

        def listen(service: Service) -> Server:
            # The budget that `serve` is given below counts these windows, so the transport must not exceed them.
            in_flight_bytes = DEFAULT_BUDGET.in_flight_bytes
            if worker_count:
                return flcore_transport.GrpcServer(service, in_flight_bytes=in_flight_bytes)  # imports gRPC
            return InProcessServer(service, in_flight_bytes=in_flight_bytes)

        def started(server: Server, federation: Federation) -> None:
            if isinstance(server, InProcessServer):
                stack.enter_context(_client_threads(loaded, names, server, federation.state.stop_waiting, notify))
            else:
                stack.enter_context(
                    WorkerProcesses(loaded, names, worker_count, server.address, federation.state.stop_waiting, notify)
                )

        return serve(
            loaded,
            listen,
            started=started,
            wait_for=len(names),
            directory=directory,
            fresh=fresh,
            observe=observe,
            budget=DEFAULT_BUDGET,
        )


@contextmanager
def _client_threads(
    job: Job, names: tuple[str, ...], server: InProcessServer, give_up: Callable[[str], None], notify: Notify
) -> Iterator[None]:
    """Host every client in its own thread while the block lasts, and stop them at its end."""
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
