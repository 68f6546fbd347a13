"""Running the server's side of a job, over any transport."""

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple, Protocol

from flcore_transport import Service

from flcore.aggregation.budget import DEFAULT_BUDGET, Budget
from flcore.aggregation.staging import Staging
from flcore.aggregation.storage import Storage, read_chunks_within
from flcore.errors import QuorumError
from flcore.job.job import Job
from flcore.model.chunks import GlobalModel
from flcore.model.model import ModelPool
from flcore.model.model_writer import TemporaryModels
from flcore.server.audit_chain import AUDIT_FILE
from flcore.server.audit_log import AuditLog
from flcore.server.controller import Controller
from flcore.server.events import Observer, RunEnded, RunStarted, ignore_events, notify_all
from flcore.server.federation import Federation
from flcore.server.history import RoundRecord
from flcore.server.results import Results
from flcore.server.run_directory import RunDirectory
from flcore.server.task_runner import TaskRunner
from flcore.version import __version__
from flcore.workflows.bundled import load_workflow

logger = logging.getLogger(__name__)


class Server(Protocol):
    """A transport that serves a `Service`: a `GrpcServer` or an `InProcessServer`."""

    address: str

    def close(self, reason: str, *, failed: bool = False) -> None:
        """Say goodbye to all clients. `failed` tells them that the job has failed."""
        ...


class Outcome(NamedTuple):
    """The result of a job.

    Example:
        >>> history, model = flcore.run("digits")  # doctest: +SKIP
    """

    history: list[RoundRecord]
    """One record per round, in order."""
    model: GlobalModel
    """The last global model."""


def serve(
    job: Job,
    listen: Callable[[Service], Server],
    *,
    started: Callable[[Server, Federation], None] = lambda *_: None,
    wait_for: int | None = None,
    directory: Path | None = None,
    fresh: bool = False,
    observe: Observer = ignore_events,
    plan: str = "batch",
    budget: Budget = DEFAULT_BUDGET,
) -> Outcome:
    """Run a job's server until its workflow ends. Clients are told how the job ended.

    Args:
        job: The job.
        listen: Opens the transport that serves the job.
        started: Called when the transport is open. Default: does nothing.
        wait_for: The first round begins when this number of clients is connected. Default: None, the quorum.
        directory: The output directory. Default: None, no files.
        fresh: Move an earlier run in the directory aside (`RunDirectory`). Default: False, raise `RunExists`.
        observe: Receives the events of the run. Default: ignores them.
        plan: When updates are folded: "batch" or "streaming" (`Aggregator`). Default: "batch".
        budget: The memory for payloads. Default: 1 GiB.

    Returns:
        The history and the last model.

    Raises:
        JobError: The job cannot be run, or the directory cannot be written to.
        RunExists: The directory holds an earlier run, or another process owns it.
        BudgetError: The server might need more memory than there is.
        QuorumError: Too few clients are connected, or too few updates are in.
    """
    workflow = load_workflow(job)
    with ExitStack() as stack:
        run = None
        if directory is not None:
            run = stack.enter_context(
                RunDirectory(
                    directory, job=job.contract.name, contract_fingerprint=job.contract.fingerprint, fresh=fresh
                )
            )
            observe = notify_all(stack.enter_context(AuditLog(run.path / AUDIT_FILE)), observe)
        metadata = {} if run is None else job.initial_metadata()
        storage = stack.enter_context(_open_storage(plan, budget, run, metadata))
        source = job.initial_model()
        # Without a directory the models are in memory beside the budget, and the clients mostly in this process too
        # (`flcore.run`): the peak cannot be computed from the budget, so there is nothing to compare.
        if directory is not None:
            budget.require(plan, source.spec, job.contract.server.accumulate)
        model = storage.copy_model(source)
        federation = Federation(job, model.spec, observe=observe)
        results = Results(run, job.contract.server.best, observe, metadata, job.contract.server.checkpoint_every)
        task_runner = TaskRunner(federation, job.contract.server, storage.staging, observe)
        control = Controller(job, model, task_runner, results, observe, storage)
        # The first model is freed after the round in which it is sent: no variable here may refer to it.
        del source, model
        reason, failed = "the server could not start", True
        stack.callback(lambda: observe(RunEnded(reason, failed)))
        contract = job.contract
        run_id = "" if run is None else run.id
        observe(RunStarted(run_id, contract.name, contract.fingerprint, job.code_digest, __version__))
        server = listen(federation)
        reason = "the server was stopped"
        try:
            started(server, federation)
            task_runner.await_start(wait_for or job.contract.server.quorum)
            workflow(control)
            if results.model is None:  # a workflow that publishes no model ends with the initial one
                results.publish(control.initial_model, {})
            reason, failed = "the job is done", False
        except QuorumError as error:
            reason = f"the job failed: {error.summary}"
            raise
        except Exception:
            # The error may name clients and quote what they sent. That is for the server's log alone.
            reason = "the job failed; the server's log says why"
            raise
        finally:
            server.close(reason, failed=failed)
        return Outcome(results.history, results.last())


@contextmanager
def _open_storage(
    plan: str, budget: Budget, run: RunDirectory | None, metadata: Mapping[str, str]
) -> Iterator[Storage]:
    """Open the storage of updates and models.

    Updates are staged in memory within the budget, beyond it on disk. Models are files with the plan "batch" and a
    directory, else in memory.
    """
    chunks = read_chunks_within(budget.working_bytes)
    if run is None:
        yield Storage(plan, Staging(budget.staging_bytes), ModelPool(), chunks)
        return
    staging = Staging(budget.staging_bytes, run.path / ".staging")
    models = TemporaryModels(run.path / ".models", run.free_reserve, metadata)
    try:
        yield Storage(plan, staging, models if plan == "batch" else ModelPool(), chunks)
    finally:
        staging.close()
        models.close()
