"""The service of a job that a transport serves: it lets clients in, and leads each call to the round it belongs to."""

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
    MalformedMessage,
    TaskMessage,
    UpdateMessage,
    WelcomeMessage,
    encode_tensors,
    parse_message,
)
from flcore.model.chunks import GlobalModel
from flcore.model.spec import ModelSpec
from flcore.model.wire_format import WireFormat
from flcore.server.admission import Admission
from flcore.server.downloads import ModelDownload
from flcore.server.events import JoinRefused, Observer, TaskSent, ignore_events
from flcore.server.open_round import OpenRound
from flcore.server.refused_answers import RefusalReport, ReportedUpload
from flcore.server.round_registry import RoundRegistry
from flcore.server.task_round import RoundPolicy, TaskRound, Verdict
from flcore.server.uploads import PendingUpload, UploadCall, check_message, check_tensors, refusal_for
from flcore.version import __version__

MAX_WELCOME_BYTES = MAX_PIECE_BYTES - 4096
"""What gRPC takes as one message, and some bytes around it."""


class Federation:
    """All clients of one job. `clock` gives seconds that never go back."""

    def __init__(
        self,
        job: Job,
        spec: ModelSpec,
        *,
        observe: Observer = ignore_events,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.spec = spec
        self.client_names = job.contract.client_names
        self._contract, self._observe, self._clock = job.contract, observe, clock
        self._download_format = WireFormat.compressed(spec, job.contract.wire.download)
        self._upload_format = WireFormat.compressed(spec, job.contract.wire.upload)
        self._admission = Admission(job)
        # One copy for all: of a model of ten thousand tensors it is half a megabyte.
        self._welcome = WelcomeMessage(
            tensors=encode_tensors(spec), code_digest=job.code_digest, version=__version__
        ).to_bytes()
        if len(self._welcome) > MAX_WELCOME_BYTES:
            raise JobError(
                f"server.model: the names and shapes of {len(spec.tensors)} tensors take {len(self._welcome):,} bytes, "
                f"and a client is told at most {MAX_WELCOME_BYTES:,}"
            )
        self.rounds = RoundRegistry(observe, clock)
        # Clients keep the last model they read; the prefix sets it apart from those of another server process.
        self._payload_prefix = secrets.token_hex(4)
        self._last_model: tuple[weakref.ref[GlobalModel] | None, str] = (None, "")

    # What the controller does.

    def start_round(
        self,
        messages: Mapping[str, TaskMessage],
        model: GlobalModel,
        policy: RoundPolicy,
        aggregator: Aggregator | None = None,
    ) -> OpenRound:
        """Send each client its task and the model. `rounds.wait_until_closed` waits for the round that this opens."""
        first = next(iter(messages.values()))
        number = self.rounds.next_number()
        assignments = {
            client: TaskAssignment(
                number, message.to_bytes(), self._download_format.layout, self._payload_id(model, number)
            )
            for client, message in messages.items()
        }
        returns = self._contract.tasks[first.task].returns
        state = TaskRound(number, list(messages), policy, self._clock())
        open_round = OpenRound(first.task, returns, state, assignments, model, aggregator, round=first.round)
        self._observe(TaskSent(first.task, first.round, len(messages)))
        self.rounds.open(open_round)
        return open_round

    def _payload_id(self, model: GlobalModel, number: int) -> str:
        """Return the name by which clients know a model: that of its first round."""
        last, name = self._last_model
        if last is None or last() is not model:
            name = f"{self._payload_prefix}-{number}"
            self._last_model = weakref.ref(model), name
        return name

    # What the transport calls (`flcore_transport.Service`).

    def admit(self, client: str, content: bytes) -> bytes:
        """Let a client in that is invited and holds the same contract."""
        try:
            self._admission.require(client, content)
        except (MalformedMessage, ContractMismatch, NotInvited) as error:
            self._observe(JoinRefused(client, str(error)))
            raise refusal_for(error) from error
        return self._welcome

    def client_connected(self, client: str, link: ClientLink) -> None:
        """The client can be reached; if it owes an answer, it is asked again."""
        self.rounds.client_connected(client, link)

    def client_disconnected(self, client: str) -> None:
        """The client cannot be reached any more."""
        self.rounds.client_disconnected(client)

    def begin_download(self, client: str, assignment_id: int) -> Outbox:
        """Return the model of an assignment that the client still works on."""
        return ModelDownload(
            self.rounds, self.rounds.require_round(client, assignment_id), client, self._download_format
        )

    def begin_upload(self, client: str, assignment_id: int, content: bytes, layout: Layout) -> ReportedUpload:
        """Begin, or go on with, a client's answer. What is wrong with it costs its client its place in the round."""
        report = RefusalReport(self._observe, client, assignment_id, self.rounds)
        with report:
            return ReportedUpload(self._begin_upload(client, assignment_id, content, layout), report)

    def _begin_upload(self, client: str, assignment_id: int, content: bytes, layout: Layout) -> UploadCall:
        open_round = self.rounds.require_round(client, assignment_id, Verdict.DUPLICATE)
        key = hashlib.sha256(content).hexdigest()
        upload = self.rounds.find_upload(open_round, client, key)
        if upload is None:
            try:
                upload = self._create_upload(open_round, client, key, content, layout)
            except (UpdateError, MalformedMessage, SpecError) as error:
                self.rounds.fail(open_round, client, str(error))
                raise refusal_for(error) from error
        return UploadCall(self.rounds, open_round, self.rounds.begin_upload(open_round, upload))

    def task_failed(self, client: str, assignment_id: int, message: str) -> None:
        """A client has failed in its assignment. Its message is shown to the server only, not to other clients."""
        self.rounds.fail(self.rounds.require_round(client, assignment_id, Verdict.FAILED), client, message)

    def _create_upload(
        self, open_round: OpenRound, client: str, key: str, content: bytes, layout: Layout
    ) -> PendingUpload:
        message = parse_message(UpdateMessage, content)
        check_message(message, client, open_round.returns, self._contract.bounds)
        staged = None
        if open_round.aggregator is not None:
            check_tensors(message, layout, client, self._upload_format)
            staged = open_round.aggregator.stage(client, message.weight)
        return PendingUpload(key, message, self._upload_format, client, staged)
