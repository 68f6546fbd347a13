"""Running the server's side of a job, over any transport."""

import logging
from collections.abc import Callable, Iterator
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
        """Say goodbye to all clients, with whether the job has failed."""
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
    """Run a job's server until its workflow ends; `listen` opens the transport, `started` is called when it is open.

    The first round begins when `wait_for` clients are connected (the quorum, if None). `directory` takes what the run
    leaves; `fresh` keeps an earlier run in it beside it (see `RunDirectory`). `plan` says when updates are folded (see
    `Aggregator`), and `budget` how much memory they take until then. Clients are told how it ended.
    """
    workflow = load_workflow(job)
    with ExitStack() as stack:
        run = None
        if directory is not None:
            run = stack.enter_context(
                RunDirectory(directory, job=job.contract.name, fingerprint=job.contract.fingerprint, fresh=fresh)
            )
            observe = notify_all(stack.enter_context(AuditLog(run.path / AUDIT_FILE)), observe)
        storage = stack.enter_context(_open_storage(plan, budget, run))
        source = job.initial_model()
        if directory is not None:
            budget.require(plan, source.spec, job.contract.server.accumulate)
        model = storage.copy_model(source)
        federation = Federation(job, model.spec, observe=observe)
        results = Results(run, job.contract.server.best, observe)
        task_runner = TaskRunner(federation, job.contract.server, storage.staging, observe)
        control = Controller(job, model, task_runner, results, observe, storage)
        del source, model  # so that they are freed after the round in which they are sent
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
            if results.model is None:  # a workflow that keeps no model ends with the initial one
                results.keep(control.initial_model, {})
            reason, failed = "the job is done", False
        except QuorumError as error:
            reason = f"the job failed: {error.summary}"
            raise
        except Exception:
            reason = "the job failed; the server's log says why"  # which may name other clients and quote them
            raise
        finally:
            server.close(reason, failed=failed)
        return Outcome(results.history, results.last())


@contextmanager
def _open_storage(plan: str, budget: Budget, run: RunDirectory | None) -> Iterator[Storage]:
    """Say where payloads are: staged within the budget, models on disk if the plan keeps them there."""
    chunks = read_chunks_within(budget.working_bytes)
    if run is None:
        yield Storage(plan, Staging(budget.staging_bytes), ModelPool(), chunks)
        return
    staging = Staging(budget.staging_bytes, run.path / ".staging")
    models = TemporaryModels(run.path / ".models", run.release)
    try:
        yield Storage(plan, staging, models if plan == "batch" else ModelPool(), chunks)
    finally:
        staging.close()
        models.close()
