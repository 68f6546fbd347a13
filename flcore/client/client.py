"""One client of a job: it listens for orders, and does them one after the other.

Two threads: one listens to the session and reconnects when it breaks; the calling thread works. An order that the
server has withdrawn is not begun any more, so a client that was too slow for one round takes part in the next. The last
answer is held, so an order that asks for it once more costs an upload and no training.
"""

import secrets
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Protocol, TypeVar

from flcore_transport import (
    ConnectionLost,
    Failure,
    Fetch,
    FromServer,
    Goodbye,
    Inbox,
    Join,
    Layout,
    Offer,
    Order,
    Outbox,
    Receipt,
    Refused,
    TransportError,
    Welcome,
)

from flcore.client.answer import Answer, offered
from flcore.client.executor import Executor
from flcore.client.mailbox import Mailbox
from flcore.client.task import Task
from flcore.errors import JobFailed, SpecError, TaskFailed, UpdateError
from flcore.job.job import Job
from flcore.job.messages import JoinMessage, MalformedMessage, TaskMessage, WelcomeMessage, parse_message, spec_of
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

    def download(self, fetch: Fetch, layout: Layout | None = None) -> Iterator[bytes]:
        """Yield the pieces of an order's payload."""
        ...

    def upload(self, offer: Offer, outbox: Outbox) -> Receipt:
        """Send an answer."""
        ...

    def report(self, failure: Failure) -> Receipt:
        """Say that an order cannot be done."""
        ...

    def close(self) -> None:
        """End every call."""
        ...


class Client:
    """A client of `job` at the executor's site; `tell` is given a line for what a person may care about."""

    def __init__(
        self, job: Job, executor: Executor, connection: Connection, tell: Callable[[str], None] = lambda _: None
    ) -> None:
        self._job, self._executor, self._connection, self._tell = job, executor, connection, tell
        self._name = executor.site.name
        self._mailbox = Mailbox()
        self._stopping = threading.Event()
        # One buffer for all downloads; it holds the payload of this id.
        self._model: Model | None = None
        self._payload_id = ""
        self._feedback: dict[str, ErrorFeedback] = {}
        self._answer: Answer | None = None

    def run(self) -> str:
        """Take part until the server says goodbye, and return its reason.

        Raises `JobFailed` if the job has failed, and `Refused` if the server says no.
        """
        listener = threading.Thread(target=self._listen, name=f"{self._name}-session", daemon=True)
        listener.start()
        try:
            while not isinstance(mail := self._mailbox.take(), Goodbye):
                self._perform(*mail)
            if mail.failed:
                raise JobFailed(mail.reason)
            return mail.reason
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
        """Put what the server says into the mailbox; join again when the connection breaks."""
        message = JoinMessage(
            contract=self._job.contract.to_json(), code_digest=self._job.code_digest, version=__version__
        )
        join = Join(self._name, secrets.token_hex(8), message.to_bytes())
        delay_s, told = RETRY_S, ""
        while True:
            has_joined = False
            try:
                for said in self._connection.session(join):
                    self._mailbox.put(said)
                    if isinstance(said, Welcome):
                        has_joined, delay_s = True, RETRY_S
                        self._tell(f"{self._name}: joined {self._connection.address}")
                end: TransportError = ConnectionLost(f"{self._connection.address} ended the session")
            except Refused as error:
                self._mailbox.put(error)
                break
            except TransportError as error:
                end = error
            except Exception as error:  # noqa: BLE001 - the working thread waits, and is told whatever it is
                self._mailbox.put(TransportError(f"the session broke: {type(error).__name__}: {error}"))
                break
            why = "the connection is lost; joining again as soon as the server is there" if has_joined else str(end)
            if why != told and not (self._mailbox.is_over or self._stopping.is_set()):
                self._tell(f"{self._name}: {why}" if has_joined else f"{self._name}: {why}; trying again")
            told = "" if has_joined else why
            if self._mailbox.is_over or self._stopping.wait(delay_s):
                self._mailbox.put(end)
                break
            delay_s = min(2 * delay_s, MAX_RETRY_S)
        # A call that still waits for the server would wait for ever.
        self._connection.close()

    def _perform(self, welcome: Welcome, order: Order) -> None:
        """Do an order: send the answer, or say why there is none. The next order may go better."""
        try:
            try:
                answer = self._held(order) or self._made(welcome, order)
                if self._mailbox.is_wanted:
                    self._send(welcome, order, answer)
            except (TaskFailed, MalformedMessage, SpecError, UpdateError) as error:
                self._answer = None
                self._tell(f"{self._name}: {error}")
                failure = Failure(welcome.session, order.number, str(error)[:MAX_FAILURE_CHARACTERS])
                if self._mailbox.is_wanted:
                    self._insist(lambda: self._connection.report(failure))
        except TransportError as error:
            if self._mailbox.is_wanted:
                refused = "the server refused: " if isinstance(error, Refused) else ""
                self._tell(f"{self._name}: {refused}{error}")
        if not (self._mailbox.is_wanted or self._mailbox.is_over):
            self._tell(f"{self._name}: order {order.number} is over without this client's answer")

    def _held(self, order: Order) -> Answer | None:
        """Return the answer at hand if it answers an order, and let go of it if it does not."""
        if self._answer is not None and not self._answer.is_to(order):
            self._answer.let_go()
            self._answer = None
        return self._answer

    def _made(self, welcome: Welcome, order: Order) -> Answer:
        """Do what an order asks, and return the answer."""
        message = parse_message(TaskMessage, order.content)
        spec = spec_of(parse_message(WelcomeMessage, welcome.content).tensors)
        contract = self._job.contract
        if message.task not in contract.tasks:
            raise TaskFailed(f"the contract has no task {message.task!r}")
        model = self._download(welcome, order, spec)
        task = Task(
            message.task, message.round, message.rounds, message.seed, message.hyperparameters, self._executor.site
        )
        update = self._executor.run(model.arrays(), task)
        wire_format, feedback = WireFormat.compressed(spec, contract.wire.upload), None
        try:
            said, source = offered(update, contract.tasks[message.task].returns, spec)
        except (ValueError, OverflowError, TypeError) as error:
            raise TaskFailed(f"task {message.task!r} returned what cannot be sent: {error}") from error
        if source.layout == payload_layout(spec) != wire_format.layout:
            feedback = self._feedback_of(message.task, wire_format)
            source = Compressor(wire_format, source, feedback)
        self._answer = Answer(order, said.to_bytes(), source, feedback)
        return self._answer

    def _send(self, welcome: Welcome, order: Order, answer: Answer) -> None:
        """Upload an answer until there is a receipt."""
        offer = Offer(welcome.session, order.number, answer.content, answer.source.layout)
        self._insist(lambda: self._connection.upload(offer, Outbox(answer.source)))
        answer.is_in = True
        message = parse_message(TaskMessage, order.content)
        self._tell(f"{self._name}: round {message.round} of {message.rounds}: {message.task} is in")

    def _download(self, welcome: Welcome, order: Order, spec: ModelSpec) -> Model:
        """Return the order's model: the one at hand, or read into the same buffer."""
        if self._model is not None and order.payload_id == self._payload_id:
            return self._model
        wire_format = WireFormat.compressed(spec, self._job.contract.wire.download)
        if order.payload != wire_format.layout:
            raise TaskFailed("the payload announced is not the model that the server described")
        self._payload_id = ""
        if self._model is None or self._model.spec != spec:
            self._model = Model(spec)
        inbox = Inbox(order.payload, Decompressor(wire_format, self._model))

        def download() -> None:
            fetch = Fetch(welcome.session, order.number, inbox.received)
            for piece in self._connection.download(fetch, order.payload):
                inbox.accept(piece)
            inbox.finish()

        try:
            self._insist(download)
        except (Refused, ConnectionLost):
            raise
        except TransportError as error:
            raise TaskFailed(f"the model could not be read: {error}") from error
        self._payload_id = order.payload_id
        return self._model

    def _feedback_of(self, task: str, wire_format: WireFormat) -> ErrorFeedback:
        """Return what a task's earlier updates have left out."""
        held = self._feedback.get(task)
        if held is None or held.wire_format != wire_format:
            held = self._feedback[task] = ErrorFeedback(wire_format)
        return held

    def _insist(self, call: Callable[[], T]) -> T:
        """Make a call again each time the connection is lost, for as long as the order at work is wanted."""
        delay_s = RETRY_S
        while True:
            try:
                return call()
            except ConnectionLost:
                if not self._mailbox.is_wanted or self._stopping.wait(delay_s):
                    raise
                delay_s = min(2 * delay_s, MAX_RETRY_S)
