"""One client of a job: it receives task assignments, and runs them one after the other.

Two threads share the work. One listens to the session and joins again when it breaks. The calling thread runs the
assignments. An assignment that the server has withdrawn is not started, so a straggler of one round takes part in the
next. The last answer is cached, so a retry of the same task costs an upload and no training.
"""

import secrets
import threading
import time
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
from flcore.client.outage import Outage
from flcore.client.task import Task
from flcore.errors import JobFailed, SpecError, TaskFailed, UpdateError
from flcore.job.job import Job
from flcore.job.messages import JoinContent, MalformedMessage, TaskContent, WelcomeContent, decode_spec, parse_content
from flcore.model.compression import Compressor, Decompressor, ErrorFeedback
from flcore.model.model import Model, payload_layout
from flcore.model.spec import ModelSpec
from flcore.model.wire_format import WireFormat
from flcore.version import __version__

T = TypeVar("T")

RETRY_S = 0.2
MAX_RETRY_S = 2.0
"""The longest delay before a call is retried. It is shorter than the server's grace period of 5 s."""

MAX_FAILURE_CHARACTERS = 2_000


class Connection(Protocol):
    """A transport's connection to the server: a `GrpcConnection` or an `InProcessConnection`."""

    address: str

    def session(self, join: Join) -> Iterator[FromServer]:
        """Join, and yield the server's messages."""
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
    """A client of a job.

    Args:
        job: The job.
        executor: Runs the tasks. The client has the name of the executor's site.
        connection: The connection to the server.
        notify: Called with one line of text per notice for the client's owner. Default: ignores them.
        give_up_after_s: The client ends when the server has been away for this long. Default: None, it waits for ever.
    """

    def __init__(
        self,
        job: Job,
        executor: Executor,
        connection: Connection,
        notify: Callable[[str], None] = lambda _: None,
        *,
        give_up_after_s: float | None = None,
    ) -> None:
        self._job, self._executor, self._connection, self._notify = job, executor, connection, notify
        self._name = executor.site.name
        self._queue = AssignmentQueue()
        self._outage = Outage(give_up_after_s, time.monotonic)
        self._stopping = threading.Event()
        # One buffer for all downloads; it holds the payload of this id.
        self._model: Model | None = None
        self._payload_id = ""
        self._feedback: dict[str, ErrorFeedback] = {}
        self._answer: CachedAnswer | None = None

    def run(self) -> str:
        """Take part until the server says goodbye.

        Returns:
            The reason of the goodbye.

        Raises:
            JobFailed: The job has failed.
            Refused: The server does not admit the client.
            TransportError: The session ended with an error, or `stop` was called.
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
        """Run in a new thread. The future has the result or the exception of `run`.

        The main thread waits for the future, so that Ctrl-C interrupts the wait and not a gRPC call that is just being
        started.
        """
        future: Future[str] = Future()

        def work() -> None:
            try:
                future.set_result(self.run())
            except BaseException as error:  # noqa: BLE001 - the future raises it
                future.set_exception(error)

        threading.Thread(target=work, name=self._name, daemon=True).start()
        return future

    def stop(self) -> None:
        """End the connection and with it `run`. May be called from any thread."""
        self._stopping.set()
        self._connection.close()

    def _listen(self) -> None:
        """Put the server's messages into the assignment queue, and join again when the connection breaks."""
        content = JoinContent(
            contract=self._job.contract.to_json(), code_digest=self._job.code_digest, version=__version__
        )
        join = Join(self._name, secrets.token_hex(8), content.to_bytes())
        while True:
            problem = ""
            try:
                for incoming in self._connection.session(join):
                    self._queue.put(incoming)
                    if isinstance(incoming, Welcome):
                        problem = "the connection is lost; joining again as soon as the server is there"
                        self._outage.ended()
                        self._notify(f"{self._name}: joined {self._connection.address}")
                end: TransportError = ConnectionLost(f"{self._connection.address} ended the session")
            except Refused as error:
                self._queue.put(error)
                break
            except TransportError as error:
                end = error
            except Exception as error:  # noqa: BLE001 - without this, the working thread would wait for ever
                self._queue.put(TransportError(f"the session broke: {type(error).__name__}: {error}"))
                break
            if self._queue.has_ended or self._stopping.is_set():
                self._queue.put(end)
                break
            delay_s, notice = self._outage.failed(problem or f"{end}; trying again")
            if notice:
                self._notify(f"{self._name}: {notice}")
            if delay_s is None or self._stopping.wait(delay_s):
                self._queue.put(end)
                break
        # The working thread may be in a call that would never return now: closing ends it.
        self._connection.close()

    def _run_assignment(self, welcome: Welcome, assignment: TaskAssignment) -> None:
        """Run an assignment, and send the answer or report the failure. No failure here ends the client."""
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
        """Return the cached answer if it answers an assignment, else drop it."""
        if self._answer is not None and not self._answer.answers(assignment):
            self._answer.record_rounding_errors()
            self._answer = None
        return self._answer

    def _compute_answer(self, welcome: Welcome, assignment: TaskAssignment) -> CachedAnswer:
        """Download the model if need be, run the assignment's task, and cache the answer."""
        content = parse_content(TaskContent, assignment.content)
        spec = decode_spec(parse_content(WelcomeContent, welcome.content).tensors)
        contract = self._job.contract
        if content.task not in contract.tasks:
            raise TaskFailed(f"the contract has no task {content.task!r}")
        model = self._download(welcome, assignment, spec)
        task = Task(
            content.task, content.round, content.rounds, content.seed, content.hyperparameters, self._executor.site
        )
        update = self._executor.run(model.arrays(), task)
        wire_format, feedback = WireFormat.compressed(spec, contract.wire.upload), None
        try:
            answer_content, source = prepare_answer(update, contract.tasks[content.task].returns, spec)
        except (ValueError, OverflowError, TypeError) as error:
            raise TaskFailed(f"task {content.task!r} returned what cannot be sent: {error}") from error
        # An update whose tensors differ from the model's is sent uncompressed, for the server to refuse.
        if source.layout == payload_layout(spec) != wire_format.layout:
            feedback = self._error_feedback(content.task, wire_format)
            source = Compressor(wire_format, source, feedback)
        self._answer = CachedAnswer(assignment, answer_content.to_bytes(), source, feedback)
        return self._answer

    def _send(self, welcome: Welcome, assignment: TaskAssignment, answer: CachedAnswer) -> None:
        """Upload an answer. Retries until the receipt has come."""
        request = UploadRequest(welcome.session_secret, assignment.assignment_id, answer.content, answer.source.layout)
        self._retry(lambda: self._connection.upload(request, Outbox(answer.source)))
        answer.is_received = True
        task = parse_content(TaskContent, assignment.content)
        self._notify(f"{self._name}: round {task.round} of {task.rounds}: {task.task} is in")

    def _download(self, welcome: Welcome, assignment: TaskAssignment, spec: ModelSpec) -> Model:
        """Return the assignment's model: the present one if the payload is the same, else a downloaded one.

        All downloads go into one buffer. Task code gets read-only arrays, and its update is not sent any more.
        """
        if self._model is not None and assignment.payload_id == self._payload_id:
            return self._model
        wire_format = WireFormat.compressed(spec, self._job.contract.wire.download)
        if assignment.payload != wire_format.layout:
            raise TaskFailed("the payload of the assignment does not have the layout of the welcome's tensors")
        self._payload_id = ""  # until the download is complete, the buffer holds a mixture
        if self._model is None or self._model.spec != spec:
            self._model = Model(spec)
        inbox = Inbox(assignment.payload, Decompressor(wire_format, self._model))

        def download() -> None:
            request = DownloadRequest(welcome.session_secret, assignment.assignment_id, inbox.received)
            # `inbox.received` makes a retry resume at the first missing piece.
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
        """Return the error feedback of a task. It starts anew if the wire format has changed."""
        feedback = self._feedback.get(task)
        if feedback is None or feedback.wire_format != wire_format:
            feedback = self._feedback[task] = ErrorFeedback(wire_format)
        return feedback

    def _retry(self, call: Callable[[], T]) -> T:
        """Make a call, and retry it when the connection is lost, as long as the current assignment is wanted."""
        delay_s = RETRY_S
        while True:
            try:
                return call()
            except ConnectionLost:
                if not self._queue.is_current_wanted or self._stopping.wait(delay_s):
                    raise
                delay_s = min(2 * delay_s, MAX_RETRY_S)
