"""The service of a job that a transport serves: it admits clients, and passes calls to their attempts."""

import hashlib
import secrets
import time
import weakref
from collections.abc import Callable, Mapping

from flcore_layout import Layout
from flcore_transport import ClientLink, Outbox, TaskAssignment
from flcore_transport.piece_format import MAX_PIECE_BYTES

from flcore.aggregation.aggregator import Aggregator
from flcore.errors import ContractMismatch, JobError, NotInvited, SpecError, UpdateError
from flcore.job.job import Job
from flcore.job.messages import (
    AnswerContent,
    MalformedMessage,
    TaskContent,
    WelcomeContent,
    encode_tensors,
    parse_content,
)
from flcore.model.chunks import GlobalModel
from flcore.model.spec import ModelSpec
from flcore.model.wire_format import WireFormat
from flcore.server.admission import Admission
from flcore.server.downloads import ModelDownload
from flcore.server.events import ClientRevoked, JoinRefused, Observer, TaskSent, ignore_events
from flcore.server.federation_state import FederationState
from flcore.server.open_attempt import OpenAttempt
from flcore.server.refused_answers import RefusalReport, ReportedUpload
from flcore.server.task_attempt import AttemptPolicy, TaskAttempt, Verdict
from flcore.server.uploads import PendingUpload, UploadCall, as_refused, check_content, check_tensors
from flcore.version import __version__

MAX_WELCOME_BYTES = MAX_PIECE_BYTES - 4096
"""The largest message that gRPC accepts here, less some bytes for the fields around the content."""


class Federation:
    """All clients of one job: `open_attempt` for the controller, the methods of a `Service` for the transport.

    Args:
        job: The job.
        spec: The tensors of the global model.
        observe: Receives the events of the run. Default: ignores them.
        clock: A monotonic clock in seconds.
    """

    def __init__(
        self,
        job: Job,
        spec: ModelSpec,
        *,
        observe: Observer = ignore_events,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.spec = spec
        self.state = FederationState(observe, clock)
        self._contract, self._observe, self._clock = job.contract, observe, clock
        self._download_format = WireFormat.compressed(spec, job.contract.wire.download)
        self._upload_format = WireFormat.compressed(spec, job.contract.wire.upload)
        self._admission = Admission(job)
        # Encoded once for all clients: for a model of ten thousand tensors it is half a megabyte.
        self._welcome = WelcomeContent(
            tensors=encode_tensors(spec), code_digest=job.code_digest, version=__version__
        ).to_bytes()
        if len(self._welcome) > MAX_WELCOME_BYTES:
            raise JobError(
                f"server.model: the names and shapes of {len(spec.tensors)} tensors take {len(self._welcome):,} bytes, "
                f"and a client is told at most {MAX_WELCOME_BYTES:,}"
            )
        # A client skips the download of a payload that it has. The prefix makes ids of two server processes differ.
        self._payload_prefix = secrets.token_hex(4)
        self._last_model: tuple[weakref.ref[GlobalModel] | None, str] = (None, "")

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
    ) -> OpenAttempt:
        """Send clients their assignments. `state.wait_until_closed` waits for the attempt that this opens.

        Args:
            contents: The content of each client's assignment, by client.
            model: The model that the clients download.
            policy: When the attempt closes.
            aggregator: The destination of the updates. Default: None, for a task that returns metrics.

        Returns:
            The open attempt.
        """
        first = next(iter(contents.values()))
        assignment_id = self.state.next_assignment_id()
        payload_id = self._payload_id(model, assignment_id)
        assignments = {
            client: TaskAssignment(assignment_id, content.to_bytes(), self._download_format.layout, payload_id)
            for client, content in contents.items()
        }
        returns = self._contract.tasks[first.task].returns
        attempt = TaskAttempt(assignment_id, list(contents), policy, self._clock())
        open_attempt = OpenAttempt(first.task, returns, attempt, assignments, model, aggregator, round=first.round)
        self._observe(TaskSent(first.task, first.round, len(contents)))
        self.state.open(open_attempt)
        return open_attempt

    def _payload_id(self, model: GlobalModel, assignment_id: int) -> str:
        """Return the id under which clients know a model: the same one as long as the same model is sent."""
        last_model, payload_id = self._last_model
        if last_model is None or last_model() is not model:
            payload_id = f"{self._payload_prefix}-{assignment_id}"
            self._last_model = weakref.ref(model), payload_id
        return payload_id

    # Called by the transport, from any thread (`flcore_transport.Service`).

    def admit(self, client: str, content: bytes) -> bytes:
        """Admit a client that is invited and has the same contract. Returns the content of its welcome."""
        try:
            self._admission.require(client, content)
        except (MalformedMessage, ContractMismatch, NotInvited) as error:
            self._observe(JoinRefused(client, str(error)))
            raise as_refused(error) from error
        return self._welcome

    def join_refused(self, client: str, reason: str) -> None:
        """The transport refused a join for its certificate."""
        self._observe(JoinRefused(client, reason))

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

    def begin_download(self, client: str, assignment_id: int) -> Outbox:
        """Return the model of an assignment that the client still works on."""
        open_attempt = self.state.require_attempt(client, assignment_id)
        return ModelDownload(self.state, open_attempt, client, self._download_format)

    def begin_upload(self, client: str, assignment_id: int, content: bytes, layout: Layout) -> ReportedUpload:
        """Begin or resume the upload of a client's answer. An answer that is not acceptable fails its client."""
        report = RefusalReport(self._observe, client, assignment_id, self.state)
        with report:
            return ReportedUpload(self._begin_upload(client, assignment_id, content, layout), report)

    def _begin_upload(self, client: str, assignment_id: int, content: bytes, layout: Layout) -> UploadCall:
        # DUPLICATE is let through: a client that lost its receipt sends the same answer again, and gets the receipt
        # again. `find_upload` refuses a second answer with other content.
        open_attempt = self.state.require_attempt(client, assignment_id, Verdict.DUPLICATE)
        key = hashlib.sha256(content).hexdigest()
        upload = self.state.find_upload(open_attempt, client, key)
        if upload is None:
            try:
                upload = self._create_upload(open_attempt, client, key, content, layout)
            except (UpdateError, MalformedMessage, SpecError) as error:
                self.state.fail(open_attempt, client, str(error))
                raise as_refused(error) from error
        return UploadCall(self.state, open_attempt, self.state.begin_upload(open_attempt, upload))

    def task_failed(self, client: str, assignment_id: int, message: str) -> None:
        """A client reports that it failed in its assignment. Its message is not sent to other clients."""
        # FAILED is let through: a client that lost the receipt of its report sends it again, and a refused client may
        # report its failure. `fail` ignores both, and the first reason stays.
        self.state.fail(self.state.require_attempt(client, assignment_id, Verdict.FAILED), client, message)

    def _create_upload(
        self, open_attempt: OpenAttempt, client: str, key: str, content: bytes, layout: Layout
    ) -> PendingUpload:
        answer = parse_content(AnswerContent, content)
        check_content(answer, client, open_attempt.returns, self._contract.bounds)
        staged = None
        if open_attempt.aggregator is not None:
            check_tensors(answer, layout, client, self._upload_format)
            staged = open_attempt.aggregator.stage(client, answer.weight)
        return PendingUpload(key, answer, self._upload_format, client, staged)
