"""The federation: who is connected, what they are asked, and what they answer.

It is the `Service` that a transport serves. Transport threads deliver clients' answers; the controller's thread asks,
and sleeps until the round closes or something is due. One condition guards the state; no lock of it is held while a
piece is checked, so no client waits for another.
"""

import itertools
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from flcore_transport import Buffer, Layout, Order, Outbox, PieceRange, Receipt, Refused, Send

from flcore.aggregation.aggregator import Aggregator
from flcore.errors import ContractMismatch, JobError, NotInvited, QuorumError, SpecError, Untimely, UpdateError
from flcore.job.contract import differences
from flcore.job.job import Job
from flcore.job.messages import (
    JoinMessage,
    MalformedMessage,
    TaskMessage,
    UpdateMessage,
    WelcomeMessage,
    parse_message,
    tensors_of,
)
from flcore.job.parsing import contract_from_json
from flcore.model.model import Model
from flcore.model.spec import ModelSpec
from flcore.server.events import Answered, Asked, Departed, Failed, Joined, Moved, Observer, TurnedAway, unobserved
from flcore.server.exchange import Exchange, Traffic
from flcore.server.history import Participation
from flcore.server.intake import Intake, Upload, check_message, check_tensors
from flcore.server.round import Round, RoundRules, Verdict
from flcore.version import __version__

MAX_REASON_CHARACTERS = 2_000


class Federation:
    """All clients of one job. `clock` gives seconds that never go back."""

    def __init__(
        self,
        job: Job,
        spec: ModelSpec,
        *,
        observe: Observer = unobserved,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._job, self._spec, self._observe, self._clock = job, spec, observe, clock
        self._changed = threading.Condition()
        self._connected: dict[str, Send] = {}
        self._given_up = ""
        self._exchange: Exchange | None = None
        self._numbers = itertools.count(1)
        # Clients keep the last model they read; the prefix sets it apart from those of another server process.
        self._prefix = secrets.token_hex(4)
        self._payload: tuple[Model | None, str] = (None, "")

    # What the controller does.

    def wait_for(self, count: int, timeout_s: float | None) -> list[str]:
        """Return the names of the connected clients, sorted, once there are `count`; or raise `QuorumError`."""
        with self._changed:
            self._changed.wait_for(lambda: len(self._connected) >= count or self._given_up, timeout_s)
            if len(self._connected) < count:
                why = self._given_up or f"after {timeout_s} s"
                raise QuorumError(f"{len(self._connected)} of the {count} clients needed are connected: {why}")
            return sorted(self._connected)

    def give_up(self, reason: str) -> None:
        """Nobody else will connect: do not wait for more clients than are there."""
        with self._changed:
            self._given_up = reason
            self._changed.notify_all()

    def ask(
        self,
        messages: Mapping[str, TaskMessage],
        model: Model,
        rules: RoundRules,
        aggregator: Aggregator | None = None,
    ) -> Exchange:
        """Send each client its task and the model, and return once the round is closed."""
        first = next(iter(messages.values()))
        with self._changed:
            number = next(self._numbers)
            if self._payload[0] is not model:
                self._payload = (model, f"{self._prefix}-{number}")
            orders = {
                client: Order(number, message.to_bytes(), model.layout, self._payload[1])
                for client, message in messages.items()
            }
            round_ = Round(number, list(messages), rules, self._clock())
            returns = self._job.contract.tasks[first.task].returns
            exchange = self._exchange = Exchange(first.task, returns, round_, orders, model, aggregator)
            self._observe(Asked(first.task, first.round, len(messages)))
            for client, order in orders.items():
                if client in self._connected:
                    self._connected[client](order)
                else:
                    round_.lose(client, self._clock())
            while not round_.is_closed:
                self._changed.wait(max(0.0, round_.due_at - self._clock()))
                round_.tick(self._clock())
            for client in round_.clients:
                if client in round_.failed:
                    exchange.drop(client)
                    self._observe(Failed(exchange.task, client, round_.failed[client]))
            return exchange

    # What the transport calls (`flcore_transport.Service`).

    def admit(self, client: str, content: bytes) -> bytes:
        """Let a client in that holds the same contract."""
        try:
            self._require_same(client, parse_message(JoinMessage, content))
            if not self._job.contract.may_join(client):
                names = ", ".join(self._job.contract.client_names[:20])
                raise NotInvited(f"client {client!r} is not among the job's clients ({names})")
        except (MalformedMessage, ContractMismatch, NotInvited) as error:
            self._observe(TurnedAway(client, str(error)))
            raise Refused(error.kind, str(error)) from error
        return WelcomeMessage(
            tensors=tensors_of(self._spec), code_digest=self._job.code_digest, version=__version__
        ).to_bytes()

    def arrive(self, client: str, send: Send) -> None:
        """The client can be reached; if it owes an answer, it is asked again."""
        with self._changed:
            self._connected[client] = send
            exchange = self._exchange
            if exchange is not None and client in exchange.round.pending and not exchange.round.is_closed:
                exchange.round.find(client)
                send(exchange.orders[client])
            self._changed.notify_all()
            self._observe(Joined(client, len(self._connected)))

    def depart(self, client: str) -> None:
        """The client cannot be reached any more."""
        with self._changed:
            del self._connected[client]
            if self._exchange is not None:
                self._exchange.round.lose(client, self._clock())
            self._changed.notify_all()
            self._observe(Departed(client, len(self._connected)))

    def payload(self, client: str, order: int) -> Outbox:
        """Return the model of an order, which later rounds do not touch."""
        with self._changed:
            exchange = self._current(client, order)
        traffic = exchange.traffic
        return Outbox(_Counted(exchange.model, lambda count: self._moved(traffic, sent=count)))

    def answer(self, client: str, order: int, content: bytes, layout: Layout) -> Upload:
        """Begin, or go on with, a client's answer."""
        with self._changed:
            exchange = self._current(client, order, Verdict.DUPLICATE)
        with self._refusing(exchange, client):
            message = parse_message(UpdateMessage, content)
            intake = self._resumed(exchange, client, message) or self._opened(exchange, client, message, layout)
        return Upload(
            intake,
            lambda intake, piece: self._take(exchange, intake, piece),
            lambda intake: self._commit(exchange, intake),
        )

    def failed(self, client: str, order: int, message: str) -> None:
        """The client could not do its task."""
        with self._changed:
            exchange = self._current(client, order)
            self._fail(exchange, client, message)

    # How an answer comes in.

    def _resumed(self, exchange: Exchange, client: str, message: UpdateMessage) -> Intake | None:
        """Return the intake of this very answer, if it was announced before. Another answer begins anew."""
        with self._changed:
            intake = exchange.intakes.get(client)
            if intake is not None and intake.message == message:
                return intake
            if client in exchange.answers:
                raise _untimely(client, Verdict.DUPLICATE)
        return None

    def _opened(self, exchange: Exchange, client: str, message: UpdateMessage, layout: Layout) -> Intake:
        check_message(message, client, exchange.returns, self._job.contract.bounds)
        staged = None
        if exchange.aggregator is not None:
            check_tensors(message, layout, client, self._spec)
            staged = exchange.aggregator.stage(client, message.weight)
        intake = Intake(message, self._spec, client, staged)
        with self._changed:
            verdict = exchange.round.judge(client, exchange.round.number, self._clock())
            if verdict is not Verdict.ACCEPTED:
                raise _untimely(client, verdict)
            exchange.drop(client)
            exchange.intakes[client] = intake
        return intake

    def _take(self, exchange: Exchange, intake: Intake, piece: bytes) -> None:
        if exchange.round.is_closed:
            raise _untimely(intake.client, Verdict.LATE)
        if exchange.intakes.get(intake.client) is not intake:
            raise _untimely(intake.client, Verdict.FAILED)
        with self._refusing(exchange, intake.client):
            intake.accept(piece)
        self._moved(exchange.traffic, received=len(piece))

    def _commit(self, exchange: Exchange, intake: Intake) -> Receipt:
        number, client = exchange.round.number, intake.client
        with self._changed:
            verdict = exchange.round.judge(client, number, self._clock())
            if verdict in (Verdict.ACCEPTED, Verdict.DUPLICATE) and exchange.intakes.get(client) is not intake:
                raise _untimely(client, Verdict.FAILED)
            if verdict is Verdict.ACCEPTED:
                with self._refusing(exchange, client):
                    if exchange.aggregator is not None and intake.staged is not None:
                        exchange.aggregator.commit(intake.staged)
                exchange.answers[client] = Participation(
                    weight=intake.message.weight,
                    metrics=intake.message.metrics,
                    bytes=intake.bytes,
                    seconds=self._clock() - exchange.round.opened_at,
                )
                exchange.round.answer(client, number, self._clock())
                self._observe(Answered(exchange.task, client))
                self._changed.notify_all()
            elif verdict is not Verdict.DUPLICATE:
                raise _untimely(client, verdict)
        return Receipt(number)

    def _current(self, client: str, order: int, *also: Verdict) -> Exchange:
        """Return the exchange that an order belongs to, if the client may still work on it; or raise `Refused`."""
        exchange = self._exchange
        if exchange is None:
            raise _untimely(client, Verdict.NOT_ASKED)
        verdict = exchange.round.judge(client, order, self._clock())
        if verdict not in (Verdict.ACCEPTED, *also):
            raise _untimely(client, verdict)
        return exchange

    @contextmanager
    def _refusing(self, exchange: Exchange, client: str) -> Iterator[None]:
        """What is wrong with an answer costs its client its place in the round, and nobody anything else."""
        try:
            yield
        except (UpdateError, MalformedMessage, SpecError) as error:
            with self._changed:
                self._fail(exchange, client, str(error))
            raise Refused(getattr(error, "kind", "malformed"), str(error)) from error

    def _fail(self, exchange: Exchange, client: str, reason: str) -> None:
        if client in exchange.answers:
            return
        exchange.round.fail(client, reason[:MAX_REASON_CHARACTERS], self._clock())
        exchange.drop(client)
        self._changed.notify_all()

    def _moved(self, traffic: Traffic, *, sent: int = 0, received: int = 0) -> None:
        with self._changed:
            traffic.sent += sent
            traffic.received += received
        self._observe(Moved(sent, received))

    def _require_same(self, client: str, message: JoinMessage) -> None:
        ours = self._job.contract
        if message.contract != ours.to_json():
            try:
                theirs = contract_from_json(message.contract, f"the contract of client {client!r}")
            except JobError as error:
                raise ContractMismatch(f"client {client!r} holds another contract: {error}") from error
            lines = "\n  ".join(differences(ours, theirs))
            raise ContractMismatch(f"client {client!r} holds another contract:\n  {lines}")
        if ours.same_code and message.code_digest != self._job.code_digest:
            raise ContractMismatch(
                f"client {client!r} holds other code: its digest is {message.code_digest[:16]}, the server's "
                f"{self._job.code_digest[:16]}, and the contract says same_code = true"
            )


class _Counted:
    """A payload's source that tells how many bytes are read from it."""

    def __init__(self, model: Model, on_bytes: Callable[[int], None]) -> None:
        self.layout = model.layout
        self._model, self._on_bytes = model, on_bytes

    def read(self, piece: PieceRange) -> Sequence[Buffer]:
        buffers = self._model.read(piece)
        self._on_bytes(sum(memoryview(buffer).nbytes for buffer in buffers))
        return buffers


def _untimely(client: str, verdict: Verdict) -> Refused:
    error = Untimely(f"not taken: {verdict.value}", client=client)
    return Refused(error.kind, str(error))
