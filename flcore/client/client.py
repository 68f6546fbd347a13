"""One client of a job: it receives task assignments, and runs them one after the other.

Two threads share the work. One listens to the session and joins again when it breaks. The calling thread runs the
assignments. An assignment that the server has withdrawn is not started, so a straggler of one round takes part in the
next. The last answer is cached, so a retry of the same task costs an upload and no training. The last model is kept as
far as it was downloaded, so a download is resumed under another assignment of the same model.
"""

import secrets
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import suppress
from typing import Protocol, TypeVar

from flcore_layout import Layout
from flcore_transport import (
    JOB_FAILED,
    JOB_OVER,
    NO_SUCH_JOB,
    UNKNOWN_SESSION,
    ConnectionLost,
    DownloadRequest,
    Failure,
    FromServer,
    Goodbye,
    Join,
    Outbox,
    PieceError,
    Receipt,
    Refused,
    TaskAssignment,
    TransportError,
    UploadRequest,
    Welcome,
    Withdrawal,
    WrongServer,
)

from flcore.client.answer_outbox import AnswerChanged
from flcore.client.answers_in_memory import AnswersInMemory
from flcore.client.answers_on_disk import AnswersOnDisk
from flcore.client.assignment_queue import AssignmentQueue
from flcore.client.cached_answer import AnswerCache, CachedAnswer, encode_answer, prepare_answer
from flcore.client.executor import Executor
from flcore.client.model_buffer import ModelBuffer
from flcore.client.outage import Outage
from flcore.client.state_directory import StateDirectory
from flcore.client.task import Task
from flcore.errors import CorruptUpdate, JobFailed, SpecError, TaskFailed, UpdateError
from flcore.job.job import Job
from flcore.job.messages import JoinContent, MalformedMessage, TaskContent, WelcomeContent, decode_spec, parse_content
from flcore.model.model import Model, payload_layout
from flcore.model.spec import ModelSpec
from flcore.model.wire_format import WireFormat
from flcore.version import __version__

T = TypeVar("T")

RETRY_S = 0.2
"""The first delay before a call is retried. It doubles up to `MAX_RETRY_S`."""

MAX_RETRY_S = 2.0
"""The longest delay before a call is retried. It is shorter than the server's grace period of 5 s."""

WITHDRAWN_S = 1.0
"""A transfer may end by itself for this time after an assignment was withdrawn."""

MAX_CORRUPT_PIECES = 3
"""The most pieces of one download that are requested again because they came corrupt."""

RETRIED_REFUSALS = (UNKNOWN_SESSION, NO_SUCH_JOB, "superseded")
"""The kinds of refusals of a call that are not about what it carries."""

MAX_FAILURE_CHARACTERS = 2_000

CORRUPT = "the client cannot read the stored answer back from its disk"


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

    def running_transfers(self) -> list[Callable[[], object]]:
        """Return a function for each upload and download that runs now, which ends it."""
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
        state: The directory that keeps the last answer across restarts. Default: None, it is kept in memory.
    """

    def __init__(
        self,
        job: Job,
        executor: Executor,
        connection: Connection,
        notify: Callable[[str], None] = lambda _: None,
        *,
        give_up_after_s: float | None = None,
        state: StateDirectory | None = None,
    ) -> None:
        self._job, self._executor, self._connection, self._notify = job, executor, connection, notify
        self._name = executor.site.name
        self._queue = AssignmentQueue()
        self._run, self._welcome = "", b""
        self._sent: tuple[TaskAssignment, CachedAnswer] | None = None  # while no receipt has come
        self._outage = Outage(give_up_after_s, time.monotonic)
        self._stopping = threading.Event()
        self._buffer = ModelBuffer(job.contract.wire.download)
        self._answers: AnswerCache = AnswersInMemory(self._say) if state is None else AnswersOnDisk(state, self._say)

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
            self._answers.clear()
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

    def _say(self, text: str) -> None:
        self._notify(f"{self._name}: {text}")

    def _listen(self) -> None:
        """Put the server's messages into the assignment queue, and join again when the connection breaks."""
        content = JoinContent(
            contract=self._job.contract.to_json(), code_digest=self._job.code_digest, version=__version__
        )
        join = Join(self._name, secrets.token_hex(8), content.to_bytes())
        while (ended := self._run_session(join)) is not None:
            end, problem = ended
            if self._queue.has_ended or self._stopping.is_set():
                self._queue.put(end)
                break
            delay_s, notice = self._outage.failed(problem or f"{end}; trying again")
            if notice and delay_s is not None:
                self._say(notice)
            if delay_s is None or self._stopping.wait(delay_s):
                self._queue.put(ConnectionLost(self._outage.explain_end(str(end))) if delay_s is None else end)
                break
        # The working thread may be in a call that would never return now: closing ends it.
        self._connection.close()

    def _run_session(self, join: Join) -> tuple[TransportError, str] | None:
        """Join for one session; return its end and what to say of it, or None if the client ends with it."""
        problem = ""
        try:
            for incoming in self._connection.session(join):
                self._receive(incoming)
                if isinstance(incoming, Welcome):
                    problem = "the connection is lost; joining again as soon as the server is there"
        except Refused as error:
            # A server that was just restarted may not have begun this job again yet.
            if error.kind == NO_SUCH_JOB:
                return error, ""
            # A client that was disconnected when the server said goodbye learns it when it joins again.
            is_goodbye = error.kind in (JOB_OVER, JOB_FAILED)
            self._queue.put(Goodbye(str(error), error.kind == JOB_FAILED) if is_goodbye else error)
            return None
        except WrongServer as error:
            self._queue.put(error)
            return None
        except TransportError as error:
            return error, problem
        except Exception as error:  # noqa: BLE001 - without this, the working thread would wait for ever
            self._queue.put(TransportError(f"the session broke: {type(error).__name__}: {error}"))
            return None
        return ConnectionLost(f"{self._connection.address} ended the session"), problem

    def _receive(self, message: FromServer) -> None:
        """Handle a message of the session."""
        self._queue.put(message)
        if isinstance(message, Withdrawal):
            # The working thread may wait for a message that the network has lost, of this assignment or of an earlier
            # one. Not at once, as a refusal that says why may be on its way. A transfer that is still wanted begins
            # again where it was.
            for end in self._connection.running_transfers():
                timer = threading.Timer(WITHDRAWN_S, end)
                timer.daemon = True
                timer.start()
        if isinstance(message, Welcome):
            self._outage.ended()
            self._say(f"joined {self._connection.address}")

    def _run_assignment(self, welcome: Welcome, assignment: TaskAssignment) -> None:
        """Run an assignment, and send the answer or report the failure. No failure here ends the client."""
        try:
            try:
                self._begin_run(welcome)
                content = parse_content(TaskContent, assignment.content)
                self._ask_for_receipt(welcome, assignment)
                self._answer(welcome, assignment, content)
            except (TaskFailed, MalformedMessage, SpecError, UpdateError) as error:
                self._answers.forget(assignment)
                self._say(str(error))
                # A `CorruptUpdate` names a file of this client's disk, which is no matter of the server's.
                message = CORRUPT if isinstance(error, CorruptUpdate) else str(error)[:MAX_FAILURE_CHARACTERS]
                failure = Failure(welcome.session_secret, assignment.assignment_id, message, assignment.token)
                if self._queue.is_current_wanted:
                    self._retry(lambda: self._connection.report(failure))
        except TransportError as error:
            if self._queue.is_current_wanted:
                refused = "the server refused: " if isinstance(error, Refused) else ""
                self._say(f"{refused}{error}")
        if not (self._queue.is_current_wanted or self._queue.has_ended):
            self._say(f"assignment {assignment.assignment_id} is over without this client's answer")

    def _answer(self, welcome: Welcome, assignment: TaskAssignment, content: TaskContent) -> None:
        """Send the answer that is kept, or that of the task's function."""
        kept = self._answers.find(assignment, content)
        try:
            self._send(welcome, assignment, kept or self._compute_answer(welcome, assignment, content))
        except (AnswerChanged, CorruptUpdate) as error:
            self._say(f"round {content.round}, task {content.task!r}: {error}: the task is executed again")
            self._answers.forget(assignment)
            self._sent = None  # it cannot be sent once more
            self._send(welcome, assignment, self._compute_answer(welcome, assignment, content))

    def _begin_run(self, welcome: Welcome) -> None:
        """Drop what belongs to another run, as that of a server that was started with --fresh."""
        if welcome.content != self._welcome:
            run, self._welcome = parse_content(WelcomeContent, welcome.content).run, welcome.content
            if run != self._run:
                self._sent = None
            self._run = run
            self._answers.begin_run(run)

    def _ask_for_receipt(self, welcome: Welcome, assignment: TaskAssignment) -> None:
        """If the last answer may have arrived without its receipt coming back, ask for that before it is dropped.

        The server may have died in between. Whether the answer counts decides whether its rounding errors do.
        """
        sent, self._sent = self._sent, None
        if sent is not None and not sent[1].answers(assignment):
            with suppress(Refused, UpdateError):
                self._upload(welcome, *sent)

    def _compute_answer(self, welcome: Welcome, assignment: TaskAssignment, content: TaskContent) -> CachedAnswer:
        """Download the model if need be, run the assignment's task, and cache the answer."""
        spec = decode_spec(parse_content(WelcomeContent, welcome.content).tensors)
        contract = self._job.contract
        if content.task not in contract.tasks:
            raise TaskFailed(f"the contract has no task {content.task!r}")
        model = self._download(welcome, assignment, spec)
        task = Task(
            content.task, content.round, content.rounds, content.seed, content.hyperparameters, self._executor.site
        )
        update = self._executor.run(model.arrays(), task)
        wire_format = WireFormat.compressed(spec, contract.wire.upload)
        try:
            answer_content, source = prepare_answer(update, contract.tasks[content.task].returns, spec)
            encoded = encode_answer(answer_content)
        except (ValueError, OverflowError, TypeError) as error:
            raise TaskFailed(f"task {content.task!r} returned what cannot be sent: {error}") from error
        # An update whose tensors differ from the model's is sent uncompressed, for the server to refuse.
        is_compressed = source.layout == payload_layout(spec) != wire_format.layout
        return self._answers.keep(
            CachedAnswer(
                assignment, content.task, content.round, encoded, source, wire_format if is_compressed else None
            )
        )

    def _send(self, welcome: Welcome, assignment: TaskAssignment, answer: CachedAnswer) -> None:
        """Upload an answer if it is still wanted. Retries until the receipt has come."""
        if not self._queue.is_current_wanted:
            return
        self._sent = assignment, answer
        try:
            self._upload(welcome, assignment, answer)
        except Refused as error:
            if error.kind != UNKNOWN_SESSION:  # of a server that was restarted, which has not looked at the answer
                self._sent = None
            raise
        self._sent = None
        task = parse_content(TaskContent, assignment.content)
        self._say(f"round {task.round} of {task.rounds}: {task.task} is in")

    def _upload(self, welcome: Welcome, assignment: TaskAssignment, answer: CachedAnswer) -> None:
        # The token of this assignment, which may be a later one than the answer was computed for.
        request = UploadRequest(
            welcome.session_secret, assignment.assignment_id, answer.content, answer.source.layout, assignment.token
        )
        self._retry(lambda: self._connection.upload(request, answer.outbox))
        self._answers.mark_received(answer)

    def _download(self, welcome: Welcome, assignment: TaskAssignment, spec: ModelSpec) -> Model:
        """Return the assignment's model. Downloads only the pieces that the buffer lacks."""
        model, inbox = self._buffer.begin(assignment, spec)
        if inbox.is_complete:
            return model
        corrupt: list[PieceError] = []

        def download() -> None:
            request = DownloadRequest(
                welcome.session_secret, assignment.assignment_id, inbox.received, assignment.token
            )
            # `inbox.received` makes a retry resume at the first missing piece.
            for piece in self._connection.download(request, assignment.payload):
                try:
                    inbox.accept(piece)
                except PieceError as error:
                    corrupt.append(error)
                    if len(corrupt) > MAX_CORRUPT_PIECES:
                        raise
                    raise ConnectionLost(f"the model comes again from there: {error}") from error
            inbox.finish()

        try:
            self._retry(download)
        except (Refused, ConnectionLost):
            raise
        except TransportError as error:
            raise TaskFailed(f"the model could not be read: {error}") from error
        return model

    def _retry(self, call: Callable[[], T]) -> T:
        """Make a call, and retry it when the connection is lost, as long as the current assignment is wanted.

        A server that does not know the session has restarted, and the next welcome withdraws the assignment; or the
        network has changed the session's secret, and the next call has the right one. This client makes one call at a
        time, so a newer call that supersedes this one comes from a connection that the network has duplicated.
        """
        delay_s = RETRY_S
        while True:
            try:
                return call()
            except (ConnectionLost, Refused) as error:
                if isinstance(error, Refused) and error.kind not in RETRIED_REFUSALS:
                    raise
                if not self._queue.is_current_wanted or self._stopping.wait(delay_s):
                    raise
                delay_s = min(2 * delay_s, MAX_RETRY_S)
