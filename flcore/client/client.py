"""One client of a job: it receives task assignments, and runs them one after the other.

Two threads: one listens to the session and reconnects when it breaks; the calling thread works. An assignment that the
server has withdrawn is not started, so a straggler of one round takes part in the next. The last answer is cached, so
an assignment that asks for it again costs an upload and no training.
"""

import secrets
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Protocol, TypeVar

from flcore_layout import Layout
from flcore_transport import (
    ConnectionLost,
    DownloadRequest,
    Failure,
    FromServer,
    Goodbye,
    Inbox,
    Join,
    Outbox,
    Receipt,
    Refused,
    TaskAssignment,
    TransportError,
    UploadRequest,
    Welcome,
)

from flcore.client.assignment_queue import AssignmentQueue
from flcore.client.cached_answer import CachedAnswer, prepare_answer
from flcore.client.executor import Executor
from flcore.client.task import Task
from flcore.errors import JobFailed, SpecError, TaskFailed, UpdateError
from flcore.job.job import Job
from flcore.job.messages import JoinMessage, MalformedMessage, TaskMessage, WelcomeMessage, decode_spec, parse_message
from flcore.model.compression import Compressor, Decompressor, ErrorFeedback
from flcore.model.model import Model, payload_layout
from flcore.model.spec import ModelSpec
from flcore.model.wire_format import WireFormat
from flcore.version import __version__

T = TypeVar("T")

RETRY_S = 0.2
MAX_RETRY_S = 2.0
"""The longest wait before a call is made again: a client is back before the server's grace of 5 s ends."""

MAX_FAILURE_CHARACTERS = 2_000


class Connection(Protocol):
    """A transport's connection to the server: a `GrpcConnection` or an `InProcessConnection`."""

    address: str

    def session(self, join: Join) -> Iterator[FromServer]:
        """Join, and yield what the server says."""
        ...

    def download(self, request: DownloadRequest, layout: Layout | None = None) -> Iterator[bytes]:
        """Yield the pieces of an assignment's payload."""
        ...

    def upload(self, request: UploadRequest, outbox: Outbox) -> Receipt:
        """Send an answer."""
        ...

    def report(self, failure: Failure) -> Receipt:
        """Report that an assignment has failed."""
        ...

    def close(self) -> None:
        """End every call."""
        ...


class Client:
    """A client of `job` at the executor's site; `notify` is called with one line per notice."""

    def __init__(
        self, job: Job, executor: Executor, connection: Connection, notify: Callable[[str], None] = lambda _: None
    ) -> None:
        self._job, self._executor, self._connection, self._notify = job, executor, connection, notify
        self._name = executor.site.name
        self._queue = AssignmentQueue()
        self._stopping = threading.Event()
        # One buffer for all downloads; it holds the payload of this id.
        self._model: Model | None = None
        self._payload_id = ""
        self._feedback: dict[str, ErrorFeedback] = {}
        self._answer: CachedAnswer | None = None

    def run(self) -> str:
        """Take part until the server says goodbye, and return its reason.

        Raises `JobFailed` if the job has failed, and `Refused` if the server says no.
        """
        listener = threading.Thread(target=self._listen, name=f"{self._name}-session", daemon=True)
        listener.start()
        try:
            while not isinstance(received := self._queue.next_assignment(), Goodbye):
                self._run_assignment(*received)
            if received.failed:
                raise JobFailed(received.reason)
            return received.reason
        finally:
            self.stop()
            listener.join()

    def start(self) -> "Future[str]":
        """Take part in a thread of its own; the future is what `run` returns or raises.

        So a main thread that waits for it can be interrupted (Ctrl-C) without breaking a call half begun.
        """
        future: Future[str] = Future()

        def work() -> None:
            try:
                future.set_result(self.run())
            except BaseException as error:  # noqa: BLE001 - it is the future's to raise
                future.set_exception(error)

        threading.Thread(target=work, name=self._name, daemon=True).start()
        return future

    def stop(self) -> None:
        """End the connection. May be called from any thread."""
        self._stopping.set()
        self._connection.close()

    def _listen(self) -> None:
        """Put the server's messages into the assignment queue; join again when the connection breaks."""
        message = JoinMessage(
            contract=self._job.contract.to_json(), code_digest=self._job.code_digest, version=__version__
        )
        join = Join(self._name, secrets.token_hex(8), message.to_bytes())
        delay_s, reported = RETRY_S, ""
        while True:
            has_joined = False
            try:
                for incoming in self._connection.session(join):
                    self._queue.put(incoming)
                    if isinstance(incoming, Welcome):
                        has_joined, delay_s = True, RETRY_S
                        self._notify(f"{self._name}: joined {self._connection.address}")
                end: TransportError = ConnectionLost(f"{self._connection.address} ended the session")
            except Refused as error:
                self._queue.put(error)
                break
            except TransportError as error:
                end = error
            except Exception as error:  # noqa: BLE001 - the working thread waits, and raises it
                self._queue.put(TransportError(f"the session broke: {type(error).__name__}: {error}"))
                break
            why = "the connection is lost; joining again as soon as the server is there" if has_joined else str(end)
            if why != reported and not (self._queue.has_ended or self._stopping.is_set()):
                self._notify(f"{self._name}: {why}" if has_joined else f"{self._name}: {why}; trying again")
            reported = "" if has_joined else why
            if self._queue.has_ended or self._stopping.wait(delay_s):
                self._queue.put(end)
                break
            delay_s = min(2 * delay_s, MAX_RETRY_S)
        # A call that still waits for the server would wait for ever.
        self._connection.close()

    def _run_assignment(self, welcome: Welcome, assignment: TaskAssignment) -> None:
        """Run an assignment: send the answer, or report why there is none. The next one is run in any case."""
        try:
            try:
                answer = self._cached_answer(assignment) or self._compute_answer(welcome, assignment)
                if self._queue.is_current_wanted:
                    self._send(welcome, assignment, answer)
            except (TaskFailed, MalformedMessage, SpecError, UpdateError) as error:
                self._answer = None
                self._notify(f"{self._name}: {error}")
                failure = Failure(welcome.session_secret, assignment.assignment_id, str(error)[:MAX_FAILURE_CHARACTERS])
                if self._queue.is_current_wanted:
                    self._retry(lambda: self._connection.report(failure))
        except TransportError as error:
            if self._queue.is_current_wanted:
                refused = "the server refused: " if isinstance(error, Refused) else ""
                self._notify(f"{self._name}: {refused}{error}")
        if not (self._queue.is_current_wanted or self._queue.has_ended):
            self._notify(f"{self._name}: assignment {assignment.assignment_id} is over without this client's answer")

    def _cached_answer(self, assignment: TaskAssignment) -> CachedAnswer | None:
        """Return the cached answer if it answers an assignment; free it if it does not."""
        if self._answer is not None and not self._answer.answers(assignment):
            self._answer.release()
            self._answer = None
        return self._answer

    def _compute_answer(self, welcome: Welcome, assignment: TaskAssignment) -> CachedAnswer:
        """Run an assignment's task, and return the answer."""
        message = parse_message(TaskMessage, assignment.content)
        spec = decode_spec(parse_message(WelcomeMessage, welcome.content).tensors)
        contract = self._job.contract
        if message.task not in contract.tasks:
            raise TaskFailed(f"the contract has no task {message.task!r}")
        model = self._download(welcome, assignment, spec)
        task = Task(
            message.task, message.round, message.rounds, message.seed, message.hyperparameters, self._executor.site
        )
        update = self._executor.run(model.arrays(), task)
        wire_format, feedback = WireFormat.compressed(spec, contract.wire.upload), None
        try:
            update_message, source = prepare_answer(update, contract.tasks[message.task].returns, spec)
        except (ValueError, OverflowError, TypeError) as error:
            raise TaskFailed(f"task {message.task!r} returned what cannot be sent: {error}") from error
        if source.layout == payload_layout(spec) != wire_format.layout:
            feedback = self._error_feedback(message.task, wire_format)
            source = Compressor(wire_format, source, feedback)
        self._answer = CachedAnswer(assignment, update_message.to_bytes(), source, feedback)
        return self._answer

    def _send(self, welcome: Welcome, assignment: TaskAssignment, answer: CachedAnswer) -> None:
        """Upload an answer until there is a receipt."""
        request = UploadRequest(welcome.session_secret, assignment.assignment_id, answer.content, answer.source.layout)
        self._retry(lambda: self._connection.upload(request, Outbox(answer.source)))
        answer.is_received = True
        message = parse_message(TaskMessage, assignment.content)
        self._notify(f"{self._name}: round {message.round} of {message.rounds}: {message.task} is in")

    def _download(self, welcome: Welcome, assignment: TaskAssignment, spec: ModelSpec) -> Model:
        """Return the assignment's model: the present one, or one downloaded into the same buffer."""
        if self._model is not None and assignment.payload_id == self._payload_id:
            return self._model
        wire_format = WireFormat.compressed(spec, self._job.contract.wire.download)
        if assignment.payload != wire_format.layout:
            raise TaskFailed("the payload announced is not the model that the server described")
        self._payload_id = ""
        if self._model is None or self._model.spec != spec:
            self._model = Model(spec)
        inbox = Inbox(assignment.payload, Decompressor(wire_format, self._model))

        def download() -> None:
            request = DownloadRequest(welcome.session_secret, assignment.assignment_id, inbox.received)
            for piece in self._connection.download(request, assignment.payload):
                inbox.accept(piece)
            inbox.finish()

        try:
            self._retry(download)
        except (Refused, ConnectionLost):
            raise
        except TransportError as error:
            raise TaskFailed(f"the model could not be read: {error}") from error
        self._payload_id = assignment.payload_id
        return self._model

    def _error_feedback(self, task: str, wire_format: WireFormat) -> ErrorFeedback:
        """Return the rounding errors of a task's earlier updates."""
        feedback = self._feedback.get(task)
        if feedback is None or feedback.wire_format != wire_format:
            feedback = self._feedback[task] = ErrorFeedback(wire_format)
        return feedback

    def _retry(self, call: Callable[[], T]) -> T:
        """Retry a call each time the connection is lost, while the current assignment is wanted."""
        delay_s = RETRY_S
        while True:
            try:
                return call()
            except ConnectionLost:
                if not self._queue.is_current_wanted or self._stopping.wait(delay_s):
                    raise
                delay_s = min(2 * delay_s, MAX_RETRY_S)
