"""The service of a job that a transport serves: it admits clients, and passes calls to their attempts."""

import hashlib
import time
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from flcore_layout import Layout
from flcore_transport import ClientLink, Outbox, TaskAssignment
from flcore_transport.piece_format import MAX_PIECE_BYTES

from flcore.aggregation.aggregator import Aggregator
from flcore.errors import ContractMismatch, JobError, NotInvited, SpecError, StagingError, UpdateError
from flcore.job.job import Job
from flcore.job.messages import (
    AnswerContent,
    MalformedMessage,
    TaskContent,
    WelcomeContent,
    encode_tensors,
    parse_content,
)
from flcore.model.chunks import GlobalModel, elements_digest
from flcore.model.spec import ModelSpec
from flcore.model.wire_format import WireFormat
from flcore.server.admission import Admission
from flcore.server.call_log import Call, CallLog
from flcore.server.downloads import ModelDownload
from flcore.server.events import (
    CallRefused,
    ClientRevoked,
    JoinRefused,
    Observer,
    RuleBegan,
    RuleEnded,
    TaskSent,
    ignore_events,
)
from flcore.server.federation_state import FederationState
from flcore.server.open_attempt import OpenAttempt
from flcore.server.receipts import AcknowledgedUpload, LastReceipts
from flcore.server.refused_answers import RefusalReport, ReportedUpload
from flcore.server.run_state import RecordedReceipt
from flcore.server.task_attempt import AttemptPolicy, TaskAttempt, Verdict
from flcore.server.task_token import TokenKey, require_token
from flcore.server.transfer_events import UploadQueued
from flcore.server.uploads import (
    PendingUpload,
    UploadCall,
    as_refused,
    check_content,
    check_tensors,
    failure_reason,
)
from flcore.version import __version__

MAX_WELCOME_BYTES = MAX_PIECE_BYTES - 4096
"""The largest message that gRPC accepts here, less some bytes for the fields around the content."""


class Federation:
    """All clients of one job: `open_attempt` for the controller, the methods of a `Service` for the transport.

    Args:
        job: The job.
        spec: The tensors of the global model.
        run_id: The id of the run, which the assignments' tokens are bound to. Default: empty.
        token_key: The secret of the tokens, at least 32 bytes. A resumed run passes the key that it began with.
            Default: None, a random one.
        receipts: The last receipt of each client, of an earlier process. Default: None, there are none.
        first_assignment_id: Ids of assignments begin behind this number. Default: 0.
        observe: Receives the events of the run. Default: ignores them.
        clock: A monotonic clock in seconds.
    """

    def __init__(
        self,
        job: Job,
        spec: ModelSpec,
        *,
        run_id: str = "",
        token_key: bytes | None = None,
        receipts: Mapping[str, RecordedReceipt] | None = None,
        first_assignment_id: int = 0,
        observe: Observer = ignore_events,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.spec = spec
        self.state = FederationState(observe, clock, first_assignment_id)
        self._contract, self._observe, self._clock = job.contract, observe, clock
        self._download_format = WireFormat.compressed(spec, job.contract.wire.download)
        self._upload_format = WireFormat.compressed(spec, job.contract.wire.upload)
        self._admission = Admission(job)
        self._receipts = LastReceipts(receipts or {})
        # Encoded once for all clients: for a model of ten thousand tensors it is half a megabyte.
        self._welcome = WelcomeContent(
            tensors=encode_tensors(spec), code_digest=job.code_digest, version=__version__, run=run_id
        ).to_bytes()
        if len(self._welcome) > MAX_WELCOME_BYTES:
            raise JobError(
                f"server.model: the names and shapes of {len(spec.tensors)} tensors take {len(self._welcome):,} bytes, "
                f"and a client is told at most {MAX_WELCOME_BYTES:,}"
            )
        self._last_model: tuple[weakref.ref[GlobalModel] | None, str] = (None, "")
        self._tokens = TokenKey.random(run_id) if token_key is None else TokenKey(token_key, run_id)

    # Called by the controller's thread.

    @property
    def invited_clients(self) -> tuple[str, ...]:
        """The names of all clients that may join. Empty if the contract has a number of clients: any name may join."""
        clients = self._contract.clients
        return clients if isinstance(clients, tuple) else ()

    def open_attempt(
        self,
        contents: Mapping[str, TaskContent],
        model: GlobalModel,
        policy: AttemptPolicy,
        aggregator: Aggregator | None = None,
        call: Call | None = None,
    ) -> OpenAttempt:
        """Send clients their assignments. `state.wait_until_closed` waits for the attempt that this opens.

        Args:
            contents: The content of each client's assignment, by client.
            model: The model that the clients download.
            policy: When the attempt closes.
            aggregator: The destination of the updates. Default: None, for a task that returns metrics.
            call: The workflow's call that asks for the task. Default: None, one that is not recorded.

        Returns:
            The open attempt.
        """
        first = next(iter(contents.values()))
        assignment_id = self.state.next_assignment_id()
        call = call or CallLog().begin(first.round, first.task, None)
        payload_id = self.payload_id(model)
        assignments = {
            client: TaskAssignment(
                assignment_id,
                content.to_bytes(),
                self._download_format.layout,
                payload_id,
                self._tokens.token_of(content.round, content.task, assignment_id, client, payload_id),
            )
            for client, content in contents.items()
        }
        returns = self._contract.tasks[first.task].returns
        attempt = TaskAttempt(assignment_id, list(contents), policy, self._clock())
        open_attempt = OpenAttempt(
            first.task, returns, attempt, assignments, model, aggregator, round=first.round, call=call
        )
        self._observe(TaskSent(first.task, first.round, len(contents), tuple(contents), payload_id))
        self.state.open(open_attempt)
        return open_attempt

    def payload_id(self, model: GlobalModel) -> str:
        """Return the id under which clients know a model: the digest of its elements.

        It is the same after a restart, and another model has another id.
        """
        last_model, payload_id = self._last_model
        if last_model is None or last_model() is not model:
            payload_id = elements_digest(model)
            self._last_model = weakref.ref(model), payload_id
        return payload_id

    # Called by the transport, from any thread (`flcore_transport.Service`).

    def authorize(self, client: str) -> None:
        """Raise `Refused` unless the client is invited. Its join has not been read."""
        try:
            self._admission.require_invited(client)
        except NotInvited as error:
            raise as_refused(error) from error

    def admit(self, client: str, content: bytes) -> bytes:
        """Admit a client that is invited and has the same contract. Returns the content of its welcome."""
        try:
            self._admission.require(client, content)
        except (MalformedMessage, ContractMismatch, NotInvited) as error:
            self._observe(JoinRefused(client, str(error)))
            raise as_refused(error) from error
        return self._welcome

    def join_refused(self, client: str, reason: str) -> None:
        """A join was refused before its content was looked at."""
        self._observe(JoinRefused(client, reason))

    def call_refused(self, client: str, fingerprint: str, kind: str, reason: str) -> None:
        """A call was refused for its certificate or its session's secret."""
        self._observe(CallRefused(client, fingerprint, kind, reason))

    def certificate_refused(self, client: str, fingerprint: str, reason: str) -> None:
        """The transport ended a session for its certificate. Its client has failed: it cannot come back in time."""
        self._observe(ClientRevoked(client, fingerprint, reason))
        self.state.fail_everywhere(client, reason)

    def client_connected(self, client: str, link: ClientLink) -> None:
        """The client can be reached. It is sent the assignments that it has not answered."""
        self.state.client_connected(client, link)

    def client_disconnected(self, client: str) -> None:
        """The client cannot be reached any more."""
        self.state.client_disconnected(client)

    def begin_download(self, client: str, assignment_id: int, token: bytes) -> Outbox:
        """Return the model of an assignment that the client still works on."""
        open_attempt = self.state.require_attempt(client, assignment_id)
        with self._report_of(client, assignment_id):
            require_token(open_attempt.assignments[client], client, token)
        return ModelDownload(self.state, open_attempt, client, self._download_format, self._observe)

    def begin_upload(
        self, client: str, assignment_id: int, token: bytes, content: bytes, layout: Layout
    ) -> ReportedUpload | AcknowledgedUpload:
        """Begin or resume the upload of a client's answer. An answer that is not acceptable fails its client."""
        report = self._report_of(client, assignment_id)
        with report:
            key = hashlib.sha256(content).hexdigest()
            if self._receipts.has(client, assignment_id, token, key):
                return AcknowledgedUpload(assignment_id)
            call = self._begin_upload(client, assignment_id, token, key, content, layout)
            return ReportedUpload(call, report, lambda: self._receipts.record(client, assignment_id, token, key))

    def _report_of(self, client: str, assignment_id: int) -> RefusalReport:
        return RefusalReport(self._observe, client, assignment_id, self.state)

    def _begin_upload(
        self, client: str, assignment_id: int, token: bytes, key: str, content: bytes, layout: Layout
    ) -> UploadCall:
        # DUPLICATE is let through: a client that lost its receipt sends the same answer again, and gets the receipt
        # again. `find_upload` refuses a second answer with other content.
        open_attempt = self.state.require_attempt(client, assignment_id, Verdict.DUPLICATE)
        require_token(open_attempt.assignments[client], client, token)
        upload = self.state.find_upload(open_attempt, client, key)
        if upload is None:
            try:
                upload = self._create_upload(open_attempt, client, key, content, layout)
            except (UpdateError, MalformedMessage, SpecError) as error:
                is_at_fault = not isinstance(error, StagingError)
                self.state.fail(open_attempt, client, failure_reason(error), is_at_fault=is_at_fault)
                raise as_refused(error) from error
        upload = self.state.begin_upload(open_attempt, upload)
        if upload.participation is None:
            self._observe(UploadQueued(open_attempt.task, open_attempt.round, client))
        return UploadCall(self.state, open_attempt, upload, self._observe)

    def task_failed(self, client: str, assignment_id: int, token: bytes, message: str) -> None:
        """A client reports that it failed in its assignment. Its message is not sent to other clients."""
        # FAILED is let through: a client that lost the receipt of its report sends it again, and a refused client may
        # report its failure. `fail` ignores both, and the first reason stays.
        open_attempt = self.state.require_attempt(client, assignment_id, Verdict.FAILED)
        with self._report_of(client, assignment_id):
            require_token(open_attempt.assignments[client], client, token)
        self.state.fail(open_attempt, client, message)

    def _create_upload(
        self, open_attempt: OpenAttempt, client: str, key: str, content: bytes, layout: Layout
    ) -> PendingUpload:
        answer = parse_content(AnswerContent, content)
        check_content(answer, client, open_attempt.returns, self._contract.bounds)
        staged = None
        if open_attempt.aggregator is not None:
            check_tensors(answer, layout, client, self._upload_format)
            with self._reporting_rule(client):
                staged = open_attempt.aggregator.stage(client, answer.weight, key)
        return PendingUpload(key, answer, self._upload_format, client, staged)

    @contextmanager
    def _reporting_rule(self, client: str) -> Iterator[None]:
        """Report that the job's rule runs while the block lasts, if it is code of the job."""
        if ":" not in self._contract.server.rule:
            yield
            return
        self._observe(RuleBegan(client))
        try:
            yield
        finally:
            self._observe(RuleEnded(client))
