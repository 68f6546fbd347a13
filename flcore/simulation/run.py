"""`flcore.run`: a job's server and all its clients on this machine."""

import os
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import flcore_transport
from flcore_transport import InProcessConnection, InProcessServer, Service

from flcore.aggregation.budget import DEFAULT_BUDGET
from flcore.client.client import Client
from flcore.client.executor import Executor, require_tasks
from flcore.client.notices import NoticeLogger, Notify
from flcore.client.task import Site
from flcore.job.functions import FUNCTIONS_FILE
from flcore.job.job import Job
from flcore.job.site import MOST_CONNECTIONS
from flcore.model.model_paths import require_directory
from flcore.process import require_native_threads, require_own_grpc
from flcore.progress import ProgressSink
from flcore.server.events import Observer, ignore_events, notify_all
from flcore.server.federation import Federation
from flcore.server.run_directory import CLIENTS_DIRECTORY
from flcore.server.serve import Outcome, Server, serve
from flcore.simulation.notebook_progress import is_notebook, notebook_progress
from flcore.simulation.worker_processes import WorkerProcesses
from flcore.status.board import StatusBoard

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
    board: StatusBoard | None = None,
    progress: bool = True,
) -> Outcome:
    """Run a job's server and all its clients on this machine.

    Args:
        job: A directory with job.toml, the name of a bundled job, or a `Job`.
        clients: The number of clients. Default: None, that of the contract.
        workers: The number of processes that host the clients and talk to the server over gRPC on loopback. 0: threads
            of this process, without a socket. Default: None, one process per client, at most 8; of a job of functions
            (`Job.of`): 0.
        rounds: The number of rounds. Default: None, that of the contract.
        seed: The seed of the job. Default: None, that of the contract.
        out: The directory for history.jsonl, model.safetensors and best.safetensors. Default: None, no files.
        fresh: Rename an earlier run in `out` to `NAME.1`, instead of raising `RunExists`. Default: False.
        observe: Called with each event of the server. Default: ignores them.
        board: The board that shows the run: it receives its events, too. Default: None, one of the run's own.
        progress: In a Jupyter notebook, show the run's progress below the cell. Default: True.

    Returns:
        The history, one record per round, and the last model.

    Raises:
        PackError: `workers` is not 0, and the job's functions cannot stand in a file (`Job.pack`).
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
    most = 0 if loaded.functions is not None else MAX_WORKERS
    worker_count = min(len(names), most if workers is None else workers)
    if worker_count < 0:
        raise ValueError(f"workers is a number >= 0, not {workers}")
    directory = None if out is None else require_directory(out)
    require_native_threads("flcore.run")
    if worker_count:
        require_own_grpc("flcore.run")
    notify, board = NoticeLogger(), board or StatusBoard.of(loaded.contract)
    with ExitStack() as stack:
        in_files = stack.enter_context(_job_in_files(loaded)) if worker_count else loaded
        if progress and is_notebook():
            observe = notify_all(observe, stack.enter_context(notebook_progress(board)))
        tell_progress = notify_all(board.observe, observe)

        def listen(service: Service) -> Server:
            # The budget that `serve` is given below counts these windows, so the transport must not exceed them.
            in_flight_bytes = DEFAULT_BUDGET.in_flight_bytes
            if worker_count:
                return flcore_transport.GrpcServer(  # imports gRPC
                    service, in_flight_bytes=in_flight_bytes, max_connections=MOST_CONNECTIONS
                )
            return InProcessServer(service, in_flight_bytes=in_flight_bytes)

        def started(server: Server, federation: Federation) -> None:
            if directory is None:
                temporary = TemporaryDirectory(prefix="flcore-clients-", ignore_cleanup_errors=True)
                state = Path(stack.enter_context(temporary))
            else:
                state = directory / CLIENTS_DIRECTORY  # a run that goes on finds it as it was
            for name in names:
                (state / name).mkdir(parents=True, exist_ok=True)
            if isinstance(server, InProcessServer):
                stack.enter_context(
                    _client_threads(loaded, state, server, federation.state.stop_waiting, notify, tell_progress)
                )
            else:
                give_up = federation.state.stop_waiting
                stack.enter_context(
                    WorkerProcesses(in_files, state, worker_count, server.address, give_up, notify, tell_progress)
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
            board=board,
        )


@contextmanager
def _job_in_files(job: Job) -> Iterator[Job]:
    """Yield a job whose code is in files, for other processes. Those of a job of functions are temporary."""
    if job.functions is None:
        yield job
        return
    with TemporaryDirectory(prefix="flcore-job-", ignore_cleanup_errors=True) as directory:
        (Path(directory) / FUNCTIONS_FILE).write_bytes(job.functions.file())
        yield Job(job.contract, Path(directory))


@contextmanager
def _client_threads(
    job: Job,
    state: Path,
    server: InProcessServer,
    give_up: Callable[[str], None],
    notify: Notify,
    on_progress: ProgressSink,
) -> Iterator[None]:
    """Host every client in its own thread while the block lasts, and stop them at its end."""
    names, seed = job.contract.client_names, job.contract.seed
    sites = [Site(name, names, seed, state_directory=state / name) for name in names]
    executors = [Executor(job, site, notify, on_progress=on_progress) for site in sites]
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
