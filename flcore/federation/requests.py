"""The requests of leads and agents: authorised, answered, and put down in the audit log.

A lead sees all jobs, and may abort, delete and read its own ones; an admin, all. A site sends log lines and progress.
"""

import logging
from collections.abc import Callable
from concurrent.futures import Future
from typing import NamedTuple

from flcore_transport import Refused

from flcore.errors import JobError, RecordError
from flcore.federation.audit import FederationEvent, JobRequested, RequestRefused
from flcore.federation.bounded_log import read_log
from flcore.federation.event_limit import EventLimit
from flcore.federation.job_database import JobDatabase
from flcore.federation.job_files import JobDirectories
from flcore.federation.job_queue import unknown_clients
from flcore.federation.job_rows import JobRow
from flcore.federation.job_views import JobViews
from flcore.federation.messages import (
    ACTIONS,
    MAX_BODY_BYTES,
    AbortJob,
    CloneJob,
    DeleteJob,
    Done,
    FilePart,
    GetStatus,
    JobQueued,
    JobRequest,
    JobSummary,
    ListFiles,
    ListJobs,
    LogPart,
    PackReceived,
    Ping,
    PutPack,
    ReadFile,
    ReadLog,
    Request,
    RequestContent,
    ShowJob,
    SiteLog,
    SiteProgressReport,
    StatusVersion,
    SubmitJob,
    WaitForJob,
)
from flcore.federation.pack_senders import PackSenders
from flcore.federation.pack_store import PackStore, no_pack
from flcore.federation.ping import pong
from flcore.federation.roles import Caller, Roles
from flcore.federation.scheduler import Scheduler
from flcore.federation.status_views import StatusViews
from flcore.federation.status_waits import StatusWaits, fitting
from flcore.federation.submission import SubmissionLimits, read_submission
from flcore.federation.told_state import may_read
from flcore.federation.waits import Waits
from flcore.job.messages import Content, MalformedMessage, parse_content
from flcore.job.parsing import contract_from_json
from flcore.text import printable

logger = logging.getLogger(__name__)


MAX_QUEUED, MAX_QUEUED_PER_LEAD = 1_000, 200
MAX_QUEUED_BYTES = 64 << 20
"""The most jobs that wait, those of one lead, and the bytes of their contracts. Submissions at the same moment
may exceed them by the number of calls that are answered at a time."""


class Answered(NamedTuple):
    """The reply to a request."""

    content: Content
    body: bytes = b""


Answer = Answered | Future[Answered]


class Requests:
    """Answers requests. Thread-safe.

    Args:
        database: The database.
        files: The files of jobs.
        packs: The packs.
        scheduler: The queue and the running jobs.
        waits: The calls that wait.
        limits: What a job may take.
        roles: The table of roles.
        observe: Receives the events of the federation, for the audit log.
        statuses: The calls that wait for a change of a status.

    Attributes:
        status_views: The status of the federation and of its jobs.
    """

    def __init__(
        self,
        database: JobDatabase,
        files: JobDirectories,
        packs: PackStore,
        scheduler: Scheduler,
        waits: Waits[Answered],
        limits: SubmissionLimits,
        roles: Roles,
        observe: Callable[[FederationEvent], None],
        statuses: StatusWaits[Answered],
    ) -> None:
        self._database, self._files, self._packs, self._scheduler = database, files, packs, scheduler
        self._waits, self._limits, self._roles, self._observe = waits, limits, roles, observe
        self._senders, self._refusals = PackSenders(), EventLimit()
        self._views, self._statuses = JobViews(database, scheduler), statuses
        self.status_views = StatusViews(database, files, scheduler)

    def answer(self, caller: Caller, content: bytes, body: bytes = b"") -> Answer:
        """Answer a request: at once, or with a future if it waits.

        Raises:
            Refused: The request is malformed, not allowed, or cannot be done. The audit log has it.
        """
        request: Request | None = None
        try:
            request = parse_content(RequestContent, content).request
            self._require_role(caller, request)
            if isinstance(request, Ping):
                return Answered(*pong(request))
            return self._answer(caller, request, body)
        except (Refused, MalformedMessage) as error:
            action, job = ("", "") if request is None else (request.do, getattr(request, "id", None) or "")
            if self._refusals.take(caller.fingerprint or caller.owner):
                self._observe(RequestRefused(action, job, caller, error.kind, str(error)))
            if isinstance(error, Refused):
                raise
            raise Refused(error.kind, str(error)) from error
        except JobError as error:  # of a contract that another version of flcore has written
            raise Refused("bad-job", f"the job cannot be read by this version of flcore: {error}") from error
        except (OSError, RecordError) as error:
            logger.exception("a request could not be answered")  # with the paths, which are for the operator
            reason = error.strerror if isinstance(error, OSError) else "its database cannot be read or written"
            raise Refused(
                "disk", f"the server's disk has failed ({reason}); try again, or tell its operator"
            ) from error

    def _require_role(self, caller: Caller, request: Request) -> None:
        if isinstance(request, Ping) and caller.role != "none":
            return
        is_of_a_site = isinstance(request, SiteLog | SiteProgressReport)
        is_site = caller.certificate_role == "client" and caller.role != "none"
        if not (caller.role == "admin" or (is_site if is_of_a_site else caller.role == "lead")):
            expected = "a site, with the role client" if is_of_a_site else "the role lead or admin"
            expected = "the role client, lead or admin" if isinstance(request, Ping) else expected
            raise Refused(
                "not-allowed",
                f"{ACTIONS[type(request)]}: expected {expected}, got {printable(caller.name, 64)} with the role "
                f"{caller.role}; use another kit, or ask the federation's operator for the role",
            )

    def _answer(self, caller: Caller, request: JobRequest, body: bytes) -> Answer:
        match request:
            case PutPack():
                return self._put_pack(caller, request, body)
            case SubmitJob() | CloneJob():
                return self._submit(caller, request)
            case ListJobs() | ShowJob() | GetStatus():
                return self._view(caller, request)
            case WaitForJob():
                return self._wait(caller, request)
            case ReadLog():
                return self._read_log(caller, request)
            case AbortJob() | DeleteJob():
                return self._end(caller, request)
            case ListFiles() | ReadFile():
                return self._read_files(caller, request)
            case SiteLog() | SiteProgressReport():
                return self._take_report(caller, request, body)

    def _put_pack(self, caller: Caller, request: PutPack, body: bytes) -> Answered:
        digest, nbytes, offset = request.digest, request.nbytes, request.offset
        if caller.role == "admin" or self._database.owns_pack(caller.owner, digest):
            before = self._packs.put(digest, nbytes, 0, b"", caller.owner) if body else 0
            received = self._packs.put(digest, nbytes, offset, body, caller.owner)
            if before < received == nbytes:
                self._observe(JobRequested("pack", "", caller, digest))
            return Answered(PackReceived(received=received))
        return Answered(PackReceived(received=self._take_own_part(caller, request, body)))

    def _take_own_part(self, caller: Caller, request: PutPack, body: bytes) -> int:
        """Take a part of a pack, and return how much of it this lead has sent, also if the server has all of it."""
        digest, nbytes, offset = request.digest, request.nbytes, request.offset
        stored = self._packs.put(digest, nbytes, 0, b"", caller.owner)
        if self._senders.has_sent(caller.owner, digest):
            if stored >= nbytes:
                return nbytes
            self._senders.begin_anew(caller.owner, digest)
        if self._senders.received(caller.owner, digest) > stored:
            self._senders.begin_anew(caller.owner, digest)
        if offset != self._senders.received(caller.owner, digest) or not body:
            return self._senders.received(caller.owner, digest)
        if offset + len(body) > nbytes:
            raise Refused("bad-pack", f"expected a pack of {nbytes:,} bytes, got {offset + len(body):,} bytes")
        if offset <= stored < offset + len(body):  # another lead may have sent its beginning
            self._packs.put(digest, nbytes, stored, body[stored - offset :], caller.owner)
        received = self._senders.add(caller.owner, digest, nbytes, offset, body)
        if received == nbytes:
            self._observe(JobRequested("pack", "", caller, digest))
        return received

    def _submit(self, caller: Caller, request: SubmitJob | CloneJob) -> Answered:
        if isinstance(request, CloneJob):
            row = self._require_own(caller, request.id)
            digest, changes = row.pack_digest, row.changes | request.changes
        else:
            digest, changes = request.digest, request.changes
            self._require_own_pack(caller, digest)
        self._require_room(caller)
        with self._packs.holding(digest) as path:
            job = read_submission(path, changes, caller, self._limits, self._files)
            queued = self._scheduler.submit(job)
            self._packs.add_use(digest)
        self._observe(JobRequested(request.do, queued.id, caller, digest))
        return Answered(JobQueued(id=queued.id, warnings=self._warnings(queued)))

    def _warnings(self, row: JobRow) -> list[str]:
        """Say which of a job's clients have never joined, or have no role."""
        contract = contract_from_json(row.contract, row.id)
        if not isinstance(contract.clients, tuple):
            return []
        without_role = {client for client in contract.clients if self._roles.is_barred(client)}
        return unknown_clients(contract.clients, contract.server.quorum, self._database.sites(), without_role)

    def _require_room(self, caller: Caller) -> None:
        """Raise `Refused` if the queue is full, or the caller has its part of it."""
        size = self._database.queue_size(caller.owner)
        if size.own_jobs >= MAX_QUEUED_PER_LEAD and caller.role != "admin":
            found = f"{MAX_QUEUED_PER_LEAD} queued jobs of one lead"
        elif size.jobs >= MAX_QUEUED or size.contract_bytes >= MAX_QUEUED_BYTES:
            found = f"{MAX_QUEUED:,} queued jobs with contracts of {MAX_QUEUED_BYTES >> 20}MiB"
        else:
            return
        raise Refused("busy", f"expected at most {found}; submit again when one has started, or abort one")

    def _require_own_pack(self, caller: Caller, digest: str) -> None:
        """Raise `Refused`, as for a pack that is not there, unless the caller has had all bytes of a pack."""
        owner = caller.owner
        if not (
            caller.role == "admin" or self._senders.has_sent(owner, digest) or self._database.owns_pack(owner, digest)
        ):
            raise no_pack(digest)

    def _wait(self, caller: Caller, request: WaitForJob) -> Answer:
        number = self._require(request.id).number

        def attempt(is_over: bool) -> Answered | None:
            row = self._require(request.id)
            summary: JobSummary = self._views.news(row, is_own=may_read(caller, row))
            has_changed = summary.state != request.state or summary.round > request.round
            return Answered(summary) if has_changed or is_over else None

        return self._waits.wait(number, attempt)

    def _view(self, caller: Caller, request: ListJobs | ShowJob | GetStatus) -> Answer:
        match request:
            case ListJobs():
                return Answered(self._views.list(caller, request))
            case ShowJob():
                row = self._require(request.id)
                return Answered(self._views.details(row, request.after, is_own=may_read(caller, row)))
            case GetStatus():
                return self._status(caller, request)

    def _status(self, caller: Caller, request: GetStatus) -> Answer:
        views, job_id = self.status_views, request.id
        if job_id is not None:
            self._require(job_id)  # also at once, so that the refusal is in the audit log

        def attempt(is_over: bool) -> Answered | None:
            row = None if job_id is None else self._require(job_id)
            version = views.version(caller, row)  # before the status, which may be newer
            if version == request.version and not is_over:
                return None
            status = views.federation(caller) if row is None else views.job(caller, row)
            return Answered(StatusVersion(version=version), fitting(status))

        return self._statuses.wait(attempt)

    def _read_log(self, caller: Caller, request: ReadLog) -> Answer:
        row = self._require_own(caller, request.id)
        path = self._files.server_log(row.id)
        if request.client:
            contract = contract_from_json(row.contract, row.id)
            if not contract.may_join(request.client):
                raise Refused(
                    "no-such-file",
                    f"expected a client of {row.id}, got {printable(request.client, 64)!r}; see flcore show {row.id}",
                )
            path = self._files.site_log(row.id, request.client)

        def attempt(is_over: bool) -> Answered | None:
            has_ended = self._require(request.id).is_over and self._scheduler.runner(row.number) is None
            data, next_offset = read_log(path, request.offset, MAX_BODY_BYTES)
            if not (data or has_ended or is_over):
                return None
            return Answered(LogPart(next_offset=next_offset, is_over=has_ended and len(data) < MAX_BODY_BYTES), data)

        if request.wait:
            return self._waits.wait(row.number, attempt)
        part = attempt(True)
        assert part is not None  # noqa: S101 - at the end there is always a part
        return part

    def _end(self, caller: Caller, request: AbortJob | DeleteJob) -> Answered:
        row = self._require_own(caller, request.id)
        if isinstance(request, AbortJob):
            if not self._scheduler.abort(row, caller.name):
                raise Refused("is-over", f"expected a job that waits or runs, got {row.id}, which is over")
        elif not self._scheduler.delete(row):
            raise Refused(
                "not-over",
                f"expected a job that is over, got {row.id}, which waits, runs, or is just ending; abort it first",
            )
        self._observe(JobRequested(request.do, row.id, caller))
        return Answered(Done())

    def _read_files(self, caller: Caller, request: ListFiles | ReadFile) -> Answered:
        job_id = self._require_own(caller, request.id).id
        if isinstance(request, ListFiles):
            return Answered(self._views.files(self._files.list_files(job_id), request.after))
        part, nbytes, sha256 = self._files.read_file(job_id, request.name, request.offset)
        return Answered(FilePart(nbytes=nbytes, sha256=sha256), part)

    def _take_report(self, caller: Caller, request: SiteLog | SiteProgressReport, body: bytes) -> Answered:
        client = caller.name if caller.fingerprint else request.client
        row = self._require(request.id)
        contract = contract_from_json(row.contract, row.id)
        if not contract.may_join(client) or request.client not in ("", client):
            raise Refused("not-allowed", f"expected a client of {row.id}, got {printable(client, 64)!r}")
        if isinstance(request, SiteLog):
            self._files.append_to_site_log(row.id, client, body)
            self._waits.changed(row.number)
        elif (runner := self._scheduler.runner(row.number)) is not None:
            runner.report_progress(client, request.progress)
        return Answered(Done())

    def _require(self, job_id: str) -> JobRow:
        row = self._database.find(job_id)
        if row is None:
            raise Refused("no-such-id", f"expected the id of a job, got {job_id!r}; see flcore list")
        return row

    def _require_own(self, caller: Caller, job_id: str) -> JobRow:
        row = self._require(job_id)
        if not may_read(caller, row):
            raise Refused(
                "not-allowed",
                f"{row.id} is a job of {row.lead}; expected one of {caller.name}'s own, or the role admin",
            )
        return row
