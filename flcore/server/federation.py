"""The federation: who is connected, what they are asked, and what they answer.

It is the `Service` that a transport serves. Transport threads deliver clients' answers; the controller's thread asks,
and sleeps until the round closes or something is due. One condition guards the state; no lock of it is held while a
piece is checked, so no client waits for another.
"""

import itertools
import secrets
import threading
import time
from collections.abc import Callable, Mapping

from flcore_transport import MAX_PIECE_BYTES, Layout, Link, Order, Outbox, Refused

from flcore.aggregation.aggregator import Aggregator
from flcore.errors import ContractMismatch, JobError, NotInvited, QuorumError
from flcore.job.contract import differences
from flcore.job.job import Job
from flcore.job.messages import (
    JoinMessage,
    MalformedMessage,
    TaskMessage,
    WelcomeMessage,
    parse_message,
    tensors_of,
)
from flcore.job.parsing import contract_from_json
from flcore.model.chunks import GlobalModel
from flcore.model.form import Form
from flcore.model.spec import ModelSpec
from flcore.server.answers import Answers
from flcore.server.events import Asked, Departed, Failed, Joined, Observer, TurnedAway, unobserved
from flcore.server.exchange import Exchange
from flcore.server.round import Round, RoundRules, Verdict
from flcore.server.streams import Reading, Upload, untimely
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
        observe: Observer = unobserved,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.spec = spec
        self._job, self._observe, self._clock = job, observe, clock
        self._form = Form.narrowed(spec, job.contract.wire.download)
        # One copy for all: of a model of ten thousand tensors it is half a megabyte.
        self._welcome = WelcomeMessage(
            tensors=tensors_of(spec), code_digest=job.code_digest, version=__version__
        ).to_bytes()
        if len(self._welcome) > MAX_WELCOME_BYTES:
            raise JobError(
                f"server.model: the names and shapes of {len(spec.tensors)} tensors take {len(self._welcome):,} bytes, "
                f"and a client is told at most {MAX_WELCOME_BYTES:,}"
            )
        self._changed = threading.Condition()
        self._connected: dict[str, Link] = {}
        self._given_up = ""
        self._answers = Answers(job, spec, self._changed, observe, clock)
        self._readable: list[Exchange] = []
        self._numbers = itertools.count(1)
        # Clients keep the last model they read; the prefix sets it apart from those of another server process.
        self._prefix = secrets.token_hex(4)
        self._payload: tuple[GlobalModel | None, str] = (None, "")

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
        model: GlobalModel,
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
                client: Order(number, message.to_bytes(), self._form.layout, self._payload[1])
                for client, message in messages.items()
            }
            round_ = Round(number, list(messages), rules, self._clock())
            returns = self._job.contract.tasks[first.task].returns
            exchange = Exchange(first.task, returns, round_, orders, model, aggregator)
            self._readable.append(exchange)
            self._observe(Asked(first.task, first.round, len(messages)))
            for client, order in orders.items():
                if client in self._connected:
                    self._connected[client].send(order)
                else:
                    round_.lose(client, self._clock())
        while self._sleep(exchange):
            self._answers.tend(exchange)
        with self._changed:
            for client in round_.clients:
                if client in round_.failed:
                    exchange.drop(client)
                    self._observe(Failed(exchange.task, client, round_.failed[client]))
            self._retire(model)
        return exchange

    @property
    def _exchange(self) -> Exchange | None:
        """The present exchange, or the last one."""
        return self._readable[-1] if self._readable else None

    def _sleep(self, exchange: Exchange) -> bool:
        """Wait until something is due or has changed; return whether the round is still open."""
        with self._changed:
            if not exchange.round.is_closed:  # asked with the lock: whoever closes it wakes only those who wait
                due_at = min(exchange.round.due_at, self._answers.due_at(exchange))
                self._changed.wait(max(0.0, due_at - self._clock()))
                exchange.round.tick(self._clock())
            return not exchange.round.is_closed

    def _retire(self, model: GlobalModel) -> None:
        """Let go of the models before this one: the round after theirs has closed."""
        for exchange in self._readable:
            if exchange.model is not model:
                exchange.retire()
        self._readable = [exchange for exchange in self._readable if exchange.model is not None]

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
        return self._welcome

    def arrive(self, client: str, link: Link) -> None:
        """The client can be reached; if it owes an answer, it is asked again."""
        with self._changed:
            self._connected[client] = link
            exchange = self._exchange
            if exchange is not None and client in exchange.round.pending and not exchange.round.is_closed:
                exchange.round.find(client)
                link.send(exchange.orders[client])
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
        """Return the model of an order: of the present one, or of an earlier one that a straggler still reads."""
        with self._changed:
            exchange = self._straggling(client, order) or self._current(client, order)
        return Reading(exchange, client, self._form, self._clock, self._answers.moved)

    def answer(self, client: str, order: int, content: bytes, layout: Layout) -> Upload:
        """Begin, or go on with, a client's answer."""
        with self._changed:
            exchange = self._current(client, order, Verdict.DUPLICATE)
        return self._answers.open(exchange, client, content, layout)

    def failed(self, client: str, order: int, message: str) -> None:
        """The client could not do its task."""
        with self._changed:
            exchange = self._current(client, order)
            self._answers.fail(exchange, client, message)

    def _straggling(self, client: str, order: int) -> Exchange | None:
        """Return an earlier exchange whose model can still be read, if the client was asked in it."""
        for exchange in self._readable[:-1]:
            if exchange.round.number == order and client in exchange.round.clients:
                return exchange
        return None

    def _current(self, client: str, order: int, *also: Verdict) -> Exchange:
        """Return the exchange that an order belongs to, if the client may still work on it; or raise `Refused`."""
        exchange = self._exchange
        if exchange is None:
            raise untimely(client, Verdict.NOT_ASKED)
        verdict = exchange.round.judge(client, order, self._clock())
        if verdict not in (Verdict.ACCEPTED, *also):
            raise untimely(client, verdict)
        return exchange

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
