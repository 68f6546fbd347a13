"""A standing federation: one directory, one port, and the jobs that leads submit.

    federation.sqlite   the jobs and their states (`job_database`)
    audit.jsonl         who did what (`audit`)
    roles.toml          who may do what, if the operator has written it (`roles`)
    packs/, jobs/       the packs, and the files of jobs (`pack_store`, `job_files`)
    server.lock         held by the process that serves the federation

A kill at any moment leaves a directory from which the next start goes on: running jobs continue in the round in which
they were, queued ones wait where they waited.
"""

import os
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple, Protocol, Self

from flcore_transport import Ask, Identity, Reply, Service

from flcore.aggregation.budget import MIN_BUDGET_BYTES, Budget, memory_bytes
from flcore.directory_lock import try_lock
from flcore.errors import BudgetError, RunExists
from flcore.federation.audit import FederationEvent, describe_federation_event
from flcore.federation.job_database import DATABASE_FILE, JobDatabase
from flcore.federation.job_files import JobDirectories
from flcore.federation.job_runner import RunSettings
from flcore.federation.members import MembersOnly
from flcore.federation.pack_store import MAX_PACK_BYTES, PackStore
from flcore.federation.requests import Answered, Requests
from flcore.federation.roles import LOCAL, ROLES_FILE, Roles
from flcore.federation.scheduler import Scheduler
from flcore.federation.status_waits import StatusWaits
from flcore.federation.submission import SubmissionLimits
from flcore.federation.waits import Waits
from flcore.model.atomic_replace import create_directory
from flcore.server.audit_chain import AUDIT_FILE
from flcore.server.audit_log import AuditLog
from flcore.server.recorded_run import Durability
from flcore.server.serve import Server
from flcore.status.board import StatusBoard
from flcore.status.job_status import FederationStatus, JobStatus
from flcore.status.observed_run import OpenObserver
from flcore.text import counted

LOCK_FILE = "server.lock"


class HostingServer(Protocol):
    """A transport that serves the lobby, and hosts jobs beside it: a `GrpcServer`."""

    @property
    def address(self) -> str:
        """The address that it listens on."""
        ...

    def host(self, job: str, service: Service) -> Server:
        """Serve one more job: the calls that name it."""
        ...

    def leave(self) -> None:
        """End all calls without a goodbye: agents and clients wait for the next server."""
        ...


AnswerAsk = Callable[[Identity | None, Ask], "Reply | Future[Reply]"]
Listen = Callable[[Service, AnswerAsk], HostingServer]


class FederationState(NamedTuple):
    """The number of jobs in the queue, and of sites whose agent is connected."""

    queued_jobs: int
    connected_sites: int


@dataclass(frozen=True)
class FederationSettings:
    """The settings of a standing federation.

    Attributes:
        budget: The memory for payloads of all jobs together.
        slots: How many jobs run at a time. Each has an equal share of the budget and of the connections.
        plan: When updates are folded: "batch" or "streaming".
        durability: When a client gets its receipt (`flcore.server.serve`).
        max_pack_bytes: The largest pack.
        observe_runs: Open observers of each job's run, such as trackers.
    """

    budget: Budget
    slots: int = 1
    plan: str = "batch"
    durability: Durability = "disk"
    max_pack_bytes: int = MAX_PACK_BYTES
    observe_runs: tuple[OpenObserver, ...] = ()

    @property
    def share(self) -> Budget:
        """The budget of one job. Raises `BudgetError` if it is too small for any."""
        budget, slots = self.budget, self.slots
        if budget.nbytes // slots < MIN_BUDGET_BYTES:
            raise BudgetError(
                f"expected a budget of {slots * MIN_BUDGET_BYTES >> 20}MiB for {counted(slots, 'job')} at a time, got "
                f"{budget.nbytes >> 20}MiB; raise --budget, or lower --jobs"
            )
        return replace(budget, nbytes=budget.nbytes // slots, connections=max(1, budget.connections // slots))


class StandingServer:
    """Serves the federation in a directory until it is closed. A context manager.

    Args:
        directory: The federation's directory. It is created if missing, for its owner alone.
        listen: Opens the transport, with the service of agents and the function that answers requests.
        settings: The settings.
        available_bytes: The memory of the server. Default: None, that of the machine and its control groups.
        observe: Receives the events of the federation. Default: ignores them. The audit log has them in any case.

    Attributes:
        address: The address that it listens on.

    Raises:
        RunExists: Another process serves the directory.
        RecordError: The database cannot be read or written.
        CertificateError: roles.toml cannot be read.
        BudgetError: The server might need more memory than there is.
    """

    def __init__(
        self,
        directory: Path,
        listen: Listen,
        settings: FederationSettings,
        available_bytes: int | None = None,
        observe: Callable[[FederationEvent], None] = lambda _: None,
    ) -> None:
        free_bytes = _free_bytes(settings.budget, memory_bytes() if available_bytes is None else available_bytes)
        with ExitStack() as stack:
            self._start(stack, directory, listen, settings, free_bytes, observe)
            self._stack = stack.pop_all()

    def _start(
        self,
        stack: ExitStack,
        directory: Path,
        listen: Listen,
        settings: FederationSettings,
        free_bytes: int,
        observe: Callable[[FederationEvent], None],
    ) -> None:
        share = settings.share
        create_directory(directory, 0o700)
        stack.enter_context(_locked(directory / LOCK_FILE))
        self._roles = Roles(directory / ROLES_FILE)
        self._roles.check()
        audit = stack.enter_context(AuditLog(directory / AUDIT_FILE, describe_federation_event))

        def observe_all(event: FederationEvent) -> None:
            audit(event)
            observe(event)

        database = stack.enter_context(JobDatabase(directory / DATABASE_FILE))
        self._queued_jobs = database.queued_jobs
        packs = PackStore(directory / "packs", database.pack_digests(), settings.max_pack_bytes)
        files = JobDirectories(directory / "jobs")
        files.remove_others(database.ids())
        self._waits = Waits[Answered]()
        stack.callback(self._waits.close)
        statuses = StatusWaits[Answered]()
        stack.callback(statuses.close)
        self._database, self._files, self._versions = database, files, StatusWaits[str]()
        stack.callback(self._versions.close)

        def status_changed() -> None:
            statuses.changed()
            self._versions.changed()

        def changed(job: int) -> None:
            self._waits.changed(job)
            status_changed()

        run_settings = RunSettings(share, settings.plan, settings.durability, settings.observe_runs)
        self._scheduler = Scheduler(
            database,
            files,
            packs,
            self._host,
            run_settings,
            settings.slots,
            free_bytes,
            observe_all,
            changed,
            status_changed,
        )
        limits = SubmissionLimits(run_settings, settings.max_pack_bytes, free_bytes)
        self._requests = Requests(
            database, files, packs, self._scheduler, self._waits, limits, self._roles, observe_all, statuses
        )
        stack.callback(self._scheduler.stop)
        self._server = listen(MembersOnly(self._scheduler.lobby, self._roles), self._answer)
        self.address = self._server.address
        # The last to be opened is the first to be closed: no call comes any more when the jobs end.
        stack.callback(self._server.leave)
        stack.callback(self._scheduler.begin_stop)
        self._scheduler.wake()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop serving. Running jobs go on at the next start; their clients, and the agents, wait for it."""
        self._stack.close()

    def status(self) -> FederationStatus:
        """Return the jobs and the sites, as an admin sees them. May be called from any thread."""
        return self._requests.status_views.federation(LOCAL)

    def boards(self) -> dict[str, StatusBoard]:
        """Return the boards of the jobs that run, by their ids. May be called from any thread."""
        return {runner.row.id: runner.board for runner in self._scheduler.runners().values()}

    def next_version(self, version: str = "") -> "Future[str]":
        """Return a future of the next version of the status, as soon as it differs from this one, or after a while."""
        views = self._requests.status_views

        def attempt(is_over: bool) -> str | None:
            found = views.version(LOCAL, None)
            return found if found != version or is_over else None

        return self._versions.wait(attempt)

    def job_status(self, job_id: str) -> JobStatus | None:
        """Return the status of a job as an admin sees it; None for a job that is not there."""
        row = self._database.find(job_id)
        return None if row is None else self._requests.status_views.job(LOCAL, row)

    def contract(self, job_id: str) -> str | None:
        """Return the contract of a job as JSON; None for a job that is not there."""
        row = self._database.find(job_id)
        return None if row is None else row.contract

    def run_directory(self, job_id: str) -> Path | None:
        """Return the directory of a job's run, which may not have begun; None for a job that is not there."""
        return None if self._database.find(job_id) is None else self._files.run(job_id)

    def state(self) -> FederationState:
        """Return the lengths of the queue and of the list of connected sites. May be called from any thread."""
        return FederationState(self._queued_jobs(), sum(self._scheduler.sites().values()))

    def _host(self, job_id: str, service: Service) -> Server:
        return self._server.host(job_id, MembersOnly(service, self._roles))

    def _answer(self, identity: Identity | None, ask: Ask) -> "Reply | Future[Reply]":
        """Answer a request of the transport."""
        caller = LOCAL if identity is None else self._roles.caller(identity.name, identity.role, identity.fingerprint)
        answer = self._requests.answer(caller, ask.content, ask.body)
        return _to_reply(answer) if isinstance(answer, Answered) else _reply_later(answer)


def _to_reply(answered: Answered) -> Reply:
    return Reply(answered.content.to_bytes(), answered.body)


def _reply_later(answer: "Future[Answered]") -> "Future[Reply]":
    """Return a future of the reply. The transport cancels it when the caller has gone; then `answer` is cancelled."""
    reply: Future[Reply] = Future()

    def pass_on(done: "Future[Answered]") -> None:
        if done.cancelled() or not reply.set_running_or_notify_cancel():
            return
        if error := done.exception():
            reply.set_exception(error)
        else:
            reply.set_result(_to_reply(done.result()))

    reply.add_done_callback(lambda ended: answer.cancel() if ended.cancelled() else None)
    answer.add_done_callback(pass_on)
    return reply


def _free_bytes(budget: Budget, available: int) -> int:
    """Return the memory that jobs may take beside the budget. Raises `BudgetError` if the budget is too large."""
    free = available - budget.nbytes - budget.overhead_bytes
    if free < 0:
        raise BudgetError(
            f"a budget of {budget.nbytes >> 20}MiB and {budget.overhead_bytes >> 20}MiB beside it are more than the "
            f"{available >> 20}MiB of memory that there are; lower --budget or --connections"
        )
    return free


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold the lock of a federation, which ends with this process."""
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        if try_lock(file):
            raise RunExists(f"{path.parent} is served by another process; stop it, or give another directory (--out)")
        yield
    finally:
        os.close(file)
