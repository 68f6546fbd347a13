"""The scheduler: it starts queued jobs, ends running ones, and puts down in the database what has become of them.

It works when something has changed: an agent came or went, a job was queued or has ended. Passes over the queue run one
at a time on a thread of its own; without a change it sleeps. What a pass decides is in the database before it has an
effect.
"""

import logging
import threading
import time
from collections.abc import Callable, Collection
from collections.abc import Set as AbstractSet

from flcore_transport import Refused, Service

from flcore.aggregation.prefetch import BackgroundThread
from flcore.errors import FlcoreError, JobAborted, JobError, QuorumError, RecordError, ServerStopped
from flcore.federation.audit import FederationEvent, JobOver, JobStarted, SiteRefused
from flcore.federation.event_limit import EventLimit
from flcore.federation.job_database import JobDatabase
from flcore.federation.job_files import JobDirectories
from flcore.federation.job_offers import build_offer
from flcore.federation.job_queue import Capacity, WaitingJob, decide, unreachable_quorum
from flcore.federation.job_rows import JobLine, JobRow, NewJob
from flcore.federation.job_runner import JobEnd, JobRunner, RunSettings, one_line
from flcore.federation.lobby import Lobby
from flcore.federation.pack_store import PackStore
from flcore.federation.site_parts import SiteParts
from flcore.federation.start_counts import CRASHING, SUSPECTED, StartCounts
from flcore.federation.told_state import INTERRUPTED
from flcore.job.parsing import contract_from_json
from flcore.server.audit_chain import AUDIT_FILE
from flcore.server.serve import Server

logger = logging.getLogger(__name__)

STOP_TIMEOUT_S = 5.0
"""The longest that a stopping server waits for its jobs. One that folds a large model may take longer: it goes on from
its record."""


class Scheduler:
    """The queue and the running jobs of a federation.

    Args:
        database: The database.
        files: The files of jobs.
        packs: The packs.
        host: Hosts a job's service.
        settings: What all jobs have in common.
        slots: How many jobs run at a time.
        free_bytes: Memory for jobs beside the budget.
        observe: Receives the events of the federation, for the audit log.
        changed: Called with a job's number when its state, its rounds or its log have changed.
        status_changed: Called when anything has changed that the status of the federation shows.
    """

    def __init__(
        self,
        database: JobDatabase,
        files: JobDirectories,
        packs: PackStore,
        host: Callable[[str, Service], Server],
        settings: RunSettings,
        slots: int,
        free_bytes: int,
        observe: Callable[[FederationEvent], None],
        changed: Callable[[int], None],
        status_changed: Callable[[], None] = lambda: None,
    ) -> None:
        self._database, self._files, self._packs = database, files, packs
        self._host, self._settings = host, settings
        self._slots, self._free_bytes = slots, free_bytes
        self._observe, self._changed, self.status_changed = observe, changed, status_changed
        self.lobby = Lobby(self, observe)
        self._lock = threading.Lock()
        self._runners: dict[int, JobRunner] = {}
        self._interrupted: set[int] = set()  # they go on when the server is started again
        self._waiting: dict[int, WaitingJob] = {}  # what a pass needs of a job; it does not change
        self._reasons: dict[int, str] = {}
        self._connected: AbstractSet[str] = frozenset()
        self._known = database.sites()
        self._thread, self._refusals = BackgroundThread(), EventLimit()
        self._starts = StartCounts(database)
        self._is_pass_due = self._is_stopping = False
        # Before the first agent is welcomed: it ends what it is not offered.
        for row in database.jobs(("running",)):
            try:
                self._offer(row)
            except Exception as error:  # noqa: BLE001 - one job must not keep the server from its start
                self._fail(row.number, row.id, error)

    # Called by requests.

    def submit(self, job: NewJob) -> JobRow:
        """Queue a job."""
        row = self._database.add(job)
        self.wake()
        return row

    def abort(self, row: JobRow, by: str) -> bool:
        """End a job that waits or runs. Returns whether it did."""
        runner, reason = self.runner(row.number), f"aborted by {by}"
        result = (0, {}) if runner is None else runner.result
        if not self._database.end(row.number, "aborted", reason, *result):
            return False
        runner = self.runner(row.number)  # again: it may have been started in between (`_start`)
        self._record_parts(row, runner)
        self._observe(JobOver(row.id, "aborted", reason))
        self.lobby.withdraw(row.number)
        if runner is not None:
            runner.stop(JobAborted(f"the job was {reason}"))
        self._changed(row.number)
        self.wake()
        return True

    def _record_parts(self, row: JobRow, runner: JobRunner | None) -> None:
        """Record what each site has done in a job that is over. Without a runner its run's audit log tells it."""
        if runner is not None:
            self._database.set_parts(row.number, runner.parts)
        elif row.started:
            parts = SiteParts()
            parts.load(self._files.run(row.id) / AUDIT_FILE)
            self._database.set_parts(row.number, parts.all())

    def delete(self, row: JobRow) -> bool:
        """Remove a job that is over, with its files. Returns whether it did; not while its thread still ends."""
        if self.runner(row.number) is not None or not self._database.delete(row.number):
            return False
        self._waiting.pop(row.number, None)
        self._files.remove(row.id)
        if not self._database.uses_pack(row.pack_digest):
            self._packs.end_use(row.pack_digest)
        self._changed(row.number)
        return True

    def runner(self, number: int) -> JobRunner | None:
        """Return a job's runner while its thread runs; else None."""
        with self._lock:
            return self._runners.get(number)

    def runners(self) -> dict[int, JobRunner]:
        """Return the runners of the jobs whose threads run, by the jobs' numbers."""
        with self._lock:
            return dict(self._runners)

    def sites(self) -> dict[str, bool]:
        """Return the sites that are known, and whether the agent of each is connected."""
        connected = self._connected
        return {site: site in connected for site in sorted(self._known | connected)}

    def reason(self, row: JobRow | JobLine) -> str:
        """Return what a job waits for, or why it ended."""
        return self._reasons.get(row.number, "waits for its turn") if row.state == "queued" else row.reason

    def wake(self) -> None:
        """Something has changed: look at the queue."""
        with self._lock:
            if self._is_pass_due or self._is_stopping:
                return
            self._is_pass_due = True
        self._thread.submit(self._pass)

    def begin_stop(self) -> None:
        """Tell all jobs to end without a goodbye, and start no more. Returns at once."""
        with self._lock:
            self._is_stopping = True
            runners = list(self._runners.values())
        for runner in runners:
            runner.stop(ServerStopped("the server stops"))

    def stop(self) -> None:
        """Wait until all jobs have ended, for `STOP_TIMEOUT_S` at most. They go on at the next start."""
        self.begin_stop()
        with self._lock:
            runners = list(self._runners.values())
        until = time.monotonic() + STOP_TIMEOUT_S
        for runner in runners:
            if not runner.join(max(0.0, until - time.monotonic())):
                logger.warning("%s still works; it goes on from its record at the next start", runner.row.id)
        self._thread.close()

    # A pass, on the scheduler's thread.

    def _pass(self) -> None:
        with self._lock:
            self._is_pass_due = False
            runners, skipped = dict(self._runners), set(self._interrupted)
            if self._is_stopping:
                return
        try:
            jobs = self._database.open_jobs()
            queued = [number for number, state in jobs if state == "queued"]
            # Jobs that ran before a restart go first, and need no quorum: their clients have time to come back.
            for number in (each for each, state in jobs if state == "running" and each not in skipped | runners.keys()):
                if (
                    len(runners) < self._slots
                    and self._may_go_on(number, runners)
                    and (runner := self._start(number, is_continued=True))
                ):
                    runners[number] = runner
            taken = sum(runner.row.resident_bytes for runner in runners.values())
            capacity = Capacity(
                self._slots, len(runners), self._free_bytes - taken, set(self._connected), set(self._known)
            )
            waiting = [job for number in queued if (job := self._find_waiting(number)) is not None]
            decision = decide(waiting, capacity)
            self._reasons = decision.reasons
            for number in decision.starts:
                if self._database.start(number):
                    self._start(number, is_continued=False)
                    self._changed(number)
        except Exception:  # a pass that fails must not end the queue
            logger.exception("the queue cannot be looked at, which is tried again at the next change")

    def _may_go_on(self, number: int, running: Collection[int]) -> bool:
        """Whether a job may be started again. One whose starts the server has not survived is ended as failed."""
        row = self._database.find_number(number)
        if row is None:
            return False
        if self._starts.must_wait(number, running):
            if row.reason != SUSPECTED:
                self._database.set_reason(number, SUSPECTED)
            return False
        if not self._starts.is_exhausted(number):
            return True
        last = self._files.last_record(row.id)
        result = (0, {}) if last is None else (last.round, {**last.train, **last.validate})
        if self._database.end(number, "failed", CRASHING, *result):
            self._observe(JobOver(row.id, "failed", CRASHING))
        self.lobby.withdraw(number)
        self._record_parts(row, None)
        self._starts.clear(number)
        self._changed(number)
        return False

    def _find_waiting(self, number: int) -> WaitingJob | None:
        """Return what the queue needs of a job; None for one that this version of flcore cannot read."""
        try:
            return self._waiting_job(number)
        except JobError as error:
            self._fail(number, str(number), error)
            return None

    def _fail(self, number: int, job: str, error: Exception) -> None:
        """End a job that cannot be read or started, so that it holds up no other."""
        if isinstance(error, JobError):
            reason = f"the job cannot be read by this version of flcore: {one_line(error)}"
        else:
            logger.error("%s cannot be started", job, exc_info=error)
            reason = f"the job cannot be started: {type(error).__name__}; the server's output has the details"
        if self._database.end(number, "failed", reason):
            self._observe(JobOver(job, "failed", reason))

    def _waiting_job(self, number: int) -> WaitingJob:
        if number not in self._waiting:
            row = self._database.find_number(number)
            if row is None:  # deleted since: it needs nothing, and does not start
                return WaitingJob(number, 1 << 30)
            contract = contract_from_json(row.contract, row.id)
            invited = frozenset(contract.clients) if isinstance(contract.clients, tuple) else None
            self._waiting[number] = WaitingJob(number, contract.server.quorum, invited, row.resident_bytes)
        return self._waiting[number]

    def _start(self, number: int, *, is_continued: bool) -> JobRunner | None:
        """Run a job, or end it as failed. Raises `RecordError`: the next pass tries it again."""
        row = self._database.find_number(number)
        assert row is not None  # noqa: S101 - a job that runs cannot be deleted
        try:
            return self._run(row, is_continued=is_continued)
        except Exception as error:
            with self._lock:
                self._runners.pop(number, None)  # it has no thread that ends, and must not keep its slot
            if isinstance(error, RecordError):
                raise
            self.lobby.withdraw(number)
            self._fail(number, row.id, error)
            self._changed(number)
            self.wake()  # this pass has counted its slot as taken
            return None

    def _run(self, row: JobRow, *, is_continued: bool) -> JobRunner | None:
        number = row.number
        runner = JobRunner(row, self._files, self._packs.path(row.pack_digest), self._host, self._settings, self)
        with self._lock:
            if self._is_stopping:
                return None
            self._runners[number] = runner
        # After the runner is known: an abort from now on finds it, one before is in the database.
        current = self._database.find_number(number)
        if current is None or current.state != "running":
            runner.stop(JobAborted(f"the job was {current.reason if current else 'deleted'}"))
        elif not self.lobby.has_offer(number):  # also of a job whose start has failed before
            self._offer(row)
        if is_continued and row.reason:
            self._database.set_reason(number, "")
        self._observe(JobStarted(row.id, is_continued))
        self._starts.begin(number)
        runner.start()
        return runner

    def _offer(self, row: JobRow) -> None:
        """Offer a job that runs to its sites. Their processes wait until it is hosted."""
        contract, federation = contract_from_json(row.contract, row.id), self._database.federation_id
        self.lobby.offer(row.number, build_offer(row, federation), contract, self._packs.path(row.pack_digest))

    # Called by runners (`RunnerListener`).

    def site_joined(self, number: int, client: str) -> None:
        """A site runs a job, perhaps after it had refused."""
        try:
            if client in self._database.refusals(number):
                self._database.accept(number, client)
        except FlcoreError as error:
            logger.warning("the refusal of %s stays, although it has joined: %s", client, error)

    def site_left(self, number: int) -> None:
        """A site's process has gone: its refusal, if there is one, counts from now on."""
        try:
            if (runner := self.runner(number)) is not None:
                self._end_without_quorum(runner)
        except FlcoreError as error:
            logger.warning("the quorum of job %d is looked at with the next refusal: %s", number, error)

    def job_code_runs(self, number: int, *, begins: bool) -> None:
        """Code of a job begins to run, or ends."""
        try:
            (self._starts.code_began if begins else self._starts.code_ended)(number)
        except FlcoreError as error:
            logger.warning("the start of job %d is counted wrongly: %s", number, error)

    def job_progressed(self, number: int) -> None:
        """A site's answer is committed, or a round is over: its start has not crashed the server."""
        try:
            if self._starts.clear(number):
                self.wake()  # another job may wait for this
        except FlcoreError as error:
            logger.warning("the start of job %d still counts: %s", number, error)

    def job_changed(self, number: int) -> None:
        """A round is over, or there is more to read."""
        self._changed(number)

    def job_ended(self, runner: JobRunner, end: JobEnd) -> None:
        """A job's thread ends: record it, then tell the sites."""
        number, row = runner.row.number, runner.row
        try:
            if end.state is None and end.reason:
                self._database.interrupt(number, INTERRUPTED + end.reason, *runner.result)
            elif end.state is not None and self._database.end(number, end.state, end.reason, *runner.result):
                self._observe(JobOver(row.id, end.state, end.reason))
            self._record_parts(row, runner)
            self._starts.clear(number)
        except FlcoreError:
            logger.exception("%s is over (%s), which could not be recorded; the next start does it", row.id, end.state)
        if end.state is not None:
            self.lobby.withdraw(number)
        with self._lock:
            self._runners.pop(number, None)
            self._waiting.pop(number, None)
            if end.state is None:
                self._interrupted.add(number)
        self._changed(number)
        self.wake()

    # Called by the lobby (`LobbyListener`).

    def agents_changed(self, connected: frozenset[str]) -> None:
        """An agent has connected or disconnected."""
        try:
            for client in connected - self._known:
                self._database.add_site(client)
        except FlcoreError as error:
            logger.warning("a new site is not recorded: %s", error)
        self._known |= connected
        self._connected = connected
        self.status_changed()
        self.wake()

    def job_refused(self, number: int, client: str, reason: str) -> None:
        """A site does not run a job. If so many refuse that the quorum cannot be reached, the job fails."""
        runner = self.runner(number)
        if runner is None:
            raise Refused("untimely", f"client {client!r}: job {number} is over")
        earlier = self._database.refusals(number).get(client)
        if earlier is not None and (earlier == reason or not self._refusals.take(client)):
            return  # nothing new, or too much: each costs an entry of the audit log, and a sync of the database
        self._database.refuse(number, client, reason)
        self._observe(SiteRefused(runner.row.id, client, reason))
        self._end_without_quorum(runner)
        self._changed(number)

    def _end_without_quorum(self, runner: JobRunner) -> None:
        """End a job if so many sites refuse it that its quorum cannot be reached. A site that is in it does not."""
        number, joined = runner.row.number, runner.joined
        found = self._database.refusals(number)
        refused = {client: reason for client, reason in found.items() if client not in joined}
        if failure := unreachable_quorum(self._waiting_job(number), refused, self._known):
            summary, _, reasons = failure.partition(": ")
            runner.stop(QuorumError(summary, reasons=reasons))
