"""Running the server's side of a job, over any transport."""

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from html import escape
from pathlib import Path
from typing import NamedTuple, Protocol

from flcore_transport import Service

from flcore.aggregation.budget import DEFAULT_BUDGET, Budget
from flcore.aggregation.optimizer_state import state_bytes
from flcore.aggregation.staging import Staging
from flcore.aggregation.storage import Storage, read_chunks_within
from flcore.disk_errors import describe_disk_error, is_disk_error
from flcore.errors import JobAborted, JobEnded, QuorumError, ServerStopped
from flcore.job.contract import Contract
from flcore.job.job import Job
from flcore.model.chunks import GlobalModel
from flcore.model.model import ModelPool
from flcore.model.model_writer import TemporaryModels
from flcore.rules.kinds import step_of
from flcore.server.audit_chain import AUDIT_FILE
from flcore.server.audit_log import AuditLog
from flcore.server.controller import Controller
from flcore.server.events import (
    Observer,
    RunEnd,
    RunEnded,
    RunEnding,
    RunStarted,
    StorageOpened,
    ignore_events,
    notify_all,
)
from flcore.server.federation import Federation
from flcore.server.recorded_run import Durability, explain_disk_errors, open_run
from flcore.server.results import Results
from flcore.server.round_list import History
from flcore.server.run_directory import RunDirectory
from flcore.server.task_runner import RETURN_GRACE_S, TaskRunner
from flcore.status.board import StatusBoard
from flcore.status.status_file import keep_status_file
from flcore.version import __version__
from flcore.workflows.bundled import load_workflow

logger = logging.getLogger(__name__)


class Server(Protocol):
    """A transport that serves a `Service`: a `GrpcServer` or an `InProcessServer`."""

    address: str

    def close(self, reason: str, *, failed: bool = False) -> None:
        """Say goodbye to all clients. `failed` tells them that the job has failed."""
        ...

    def leave(self) -> None:
        """End all calls without a goodbye: clients wait for the next server of the run."""
        ...


class Outcome(NamedTuple):
    """The result of a job.

    Example:
        >>> history, model = flcore.run("digits")  # doctest: +SKIP
    """

    history: History
    """One record per round, in order: a list."""
    model: GlobalModel
    """The last global model."""

    def __repr__(self) -> str:
        return f"Outcome(\n    history={self.history!r},\n    model={self.model!r},\n)"

    def _repr_html_(self) -> str:
        model_html = getattr(self.model, "_repr_html_", lambda: f"<pre>{escape(repr(self.model))}</pre>")
        return self.history.to_html() + model_html()


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
    durability: Durability = "memory",
    board: StatusBoard | None = None,
) -> Outcome:
    """Run a job's server until its workflow ends. Clients are told how the job ended.

    A run in the directory that is not over goes on: in the round in which it was, with the same result.

    Args:
        job: The job.
        listen: Opens the transport that serves the job.
        started: Called when the transport is open. Default: does nothing.
        wait_for: A new run begins when this number of clients is connected. Default: None, the quorum.
        directory: The output directory. Default: None, no files.
        fresh: Move an earlier run in the directory aside (`RunDirectory`). Default: False, raise `RunExists`.
        observe: Receives the events of the run. Default: ignores them.
        plan: When updates are folded: "batch" or "streaming" (`Aggregator`). Default: "batch".
        budget: The memory for payloads. Default: 1 GiB.
        durability: When a client gets its receipt. "disk": when its update is on the disk; a run that goes on has all
            updates with a receipt. "memory" (default): when its update is in memory; a run that goes on asks the
            clients of the round again.
        board: The board that shows the run: it receives its events, too. With a directory its state is also in
            `status.json` there. Default: None, one of the run's own.

    Returns:
        The history and the last model.

    Raises:
        JobError: The job cannot be run, or the directory cannot be written to.
        RunExists: The directory holds a run that is over, or another process owns it.
        RunDiffers: The directory holds a run that is not over, of another job.
        RecordError: The run's record cannot be read or written.
        DiskError: The disk does not take what the run writes. The run goes on when it is started again.
        BudgetError: The server might need more memory than there is.
        QuorumError: Too few clients are connected, or too few updates are in.
        JobEnded: The run was ended from outside (`FederationState.stop_waiting`).
    """
    workflow = load_workflow(job)
    with ExitStack() as stack:
        stack.enter_context(explain_disk_errors(directory))
        owned = None
        if directory is not None:
            fingerprint = job.contract.fingerprint
            owned = stack.enter_context(
                RunDirectory(directory, job=job.contract.name, contract_fingerprint=fingerprint, fresh=fresh)
            )
        observe = stack.enter_context(_observers(owned, job.contract, board, observe))
        contract, metadata = job.contract, {} if owned is None else job.initial_metadata()
        storage = stack.enter_context(_open_storage(plan, budget, owned, metadata))
        source = job.initial_model()
        # Without a directory the models are in memory beside the budget, and the clients mostly in this process too
        # (`flcore.run`): the peak cannot be computed from the budget, so there is nothing to compare.
        if directory is not None:
            state = state_bytes(source.spec, step_of(job.load_rule()))
            budget.require(plan, source.spec, contract.server.accumulate, state_bytes=state)
        model = storage.copy_model(source)
        run = stack.enter_context(open_run(owned, job, model, durability))
        federation = Federation(
            job,
            model.spec,
            run_id=run.id,
            token_key=run.token_key,
            receipts=run.receipts,
            first_assignment_id=run.first_assignment_id,
            observe=observe,
        )
        results = Results(
            owned, contract.server.best, observe, metadata, contract.server.checkpoint_every, federation.payload_id
        )
        grace_until = time.monotonic() + RETURN_GRACE_S if run.calls.is_continued else 0.0
        task_runner = TaskRunner(federation, contract.server, storage.staging, observe, grace_until)
        control = Controller(job, model, task_runner, results, observe, storage, run)
        # The first model is freed after the round in which it is sent: no variable here may refer to it.
        del source, model
        reason, failed, is_interrupted = "the server could not start", True, False
        stack.push(lambda _, error, __: observe(RunEnded(reason, failed, *_end_and_cause(error))))
        observe(RunStarted(run.id, contract.name, contract.fingerprint, job.code_digest, __version__))
        quota = storage.staging.quota
        observe(
            StorageOpened(
                budget.nbytes, budget.staging_bytes, lambda: quota.used_bytes, None if owned is None else owned.path
            )
        )
        run.restore(results, observe, contract.server.rounds)
        server = listen(federation)
        reason = "the server was stopped"
        try:
            started(server, federation)
            if not run.calls.is_continued:
                task_runner.await_start(wait_for or contract.server.quorum)
            workflow(control)
            if results.model is None:  # a workflow that publishes no model ends with the initial one
                results.publish(control.initial_model, {})
            if not run.calls.has_new:  # the clients of a run that was as good as over may be on their way back
                task_runner.await_return(run.calls.last_connected)
            reason, failed = "the job is done", False
        except QuorumError as error:
            reason = f"the job failed: {error.summary}"
            raise
        except JobEnded as error:
            reason, is_interrupted = str(error), isinstance(error, ServerStopped)
            raise
        except Exception as error:
            is_interrupted = durability == "disk" and is_disk_error(error)
            # The error may name clients and quote what they sent. That is for the server's log alone.
            what = "the server's disk failed; its" if is_disk_error(error) else "the job failed; the server's"
            reason = f"{what} log says why"
            raise
        finally:
            observe(RunEnding())
            if is_interrupted:
                server.leave()
            else:
                server.close(reason, failed=failed)
        # After the goodbye: a run that is over does not go on, and a server that died before would leave its clients
        # waiting for ever.
        run.finish()
        return Outcome(History(results.history), results.last())


@contextmanager
def _observers(
    run: RunDirectory | None, contract: Contract, board: StatusBoard | None, observe: Observer
) -> Iterator[Observer]:
    """Return the observer of a run: with a directory the audit log and `status.json`, the board, and then `observe`.

    What `observe` passes an event to finds it in the board.
    """
    with ExitStack() as stack:
        observers: list[Observer] = []
        if run is not None:
            observers.append(stack.enter_context(AuditLog(run.path / AUDIT_FILE)))
            board = board or StatusBoard.of(contract)
            stack.enter_context(keep_status_file(board, run.path))
        yield notify_all(*observers, *([] if board is None else [board.observe]), observe)


def _end_and_cause(error: BaseException | None) -> tuple[RunEnd, str]:
    """Return how a run ends with this error, and the error's text."""
    match error:
        case None:
            return "done", ""
        case JobAborted():
            return "aborted", str(error)
        case JobEnded() | KeyboardInterrupt() | SystemExit():
            return "stopped", str(error)
        case OSError() if is_disk_error(error):
            return "interrupted", describe_disk_error(error, Path("the disk"))
        case _ if is_disk_error(error):
            return "interrupted", str(error)
        case _:
            return "failed", str(error) or type(error).__name__


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
        yield Storage(plan, Staging(budget.staging_bytes), ModelPool(), chunks, ModelPool())
        return
    staging = Staging(budget.staging_bytes, run.path / ".staging")
    models = TemporaryModels(run.path / ".models", run.free_reserve, metadata)
    try:
        if plan == "batch":
            yield Storage(plan, staging, models, chunks, models)
        else:
            yield Storage(plan, staging, ModelPool(), chunks, ModelPool())
    finally:
        staging.close()
        models.close()
