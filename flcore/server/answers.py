"""How the answers to an exchange come in: announced, piece by piece, and committed whole.

A stalled answer keeps nobody waiting: after two seconds without a piece it gives its memory back and goes to disk, and
after the stall timeout its client has failed in this round.
"""

import math
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager

from flcore_transport import Layout, Receipt, Refused

from flcore.errors import SpecError, StagingError, UpdateError
from flcore.job.job import Job
from flcore.job.messages import MalformedMessage, UpdateMessage, parse_message
from flcore.model.form import Form
from flcore.model.spec import ModelSpec
from flcore.server.events import Answered, Moved, Observer
from flcore.server.exchange import Exchange
from flcore.server.history import Participation
from flcore.server.intake import Intake, check_message, check_tensors
from flcore.server.round import Verdict
from flcore.server.streams import Upload, untimely

MAX_REASON_CHARACTERS = 2_000
PATIENCE_S = 2.0
"""How long an answer keeps its memory while nothing comes, or waits for some while nobody lets go."""


class Answers:
    """Takes answers into exchanges. `changed` is the federation's condition, which guards what an exchange holds."""

    def __init__(
        self, job: Job, spec: ModelSpec, changed: threading.Condition, observe: Observer, clock: Callable[[], float]
    ) -> None:
        self._contract, self._form = job.contract, Form.narrowed(spec, job.contract.wire.upload)
        self._changed, self._observe, self._clock = changed, observe, clock

    def open(self, exchange: Exchange, client: str, content: bytes, layout: Layout) -> Upload:
        """Begin an answer, or go on with one."""
        with self._refusing(exchange, client):
            message = parse_message(UpdateMessage, content)
            intake = self._resumed(exchange, client, message) or self._opened(exchange, client, message, layout)
        with self._changed:
            intake.stand_in_line(self._clock())
        return Upload(self, exchange, intake)

    def begin(self, exchange: Exchange, intake: Intake) -> "Future[None]":
        """Pieces could come now: find a place for them."""
        begun: Future[None] = Future()
        if exchange.aggregator is None or intake.staged is None:
            begun.set_result(None)
            return begun
        intake.waiting_since = self._clock()
        begun = exchange.aggregator.begin(intake.staged)
        begun.add_done_callback(lambda _: self._begun(intake))
        return begun

    def _begun(self, intake: Intake) -> None:
        """There is a place, and the first piece may come."""
        with self._changed:
            intake.leave_line(self._clock())
            self._changed.notify_all()  # something is due earlier now

    def ended(self, exchange: Exchange, intake: Intake) -> None:  # noqa: ARG002 - as a `Recipient` has it
        """The stream that carries an answer has ended; from now on its silence counts."""
        self._begun(intake)

    def take(self, exchange: Exchange, intake: Intake, piece: bytes) -> None:
        """Take the next piece of an answer."""
        if exchange.round.is_closed:
            raise untimely(intake.client, Verdict.LATE)
        if exchange.intakes.get(intake.client) is not intake:
            raise untimely(intake.client, Verdict.FAILED)
        with self._refusing(exchange, intake.client, intake):
            intake.accept(piece)
        intake.quiet_since = None if intake.inbox.is_complete else self._clock()
        self.moved(exchange, received=len(piece))

    def commit(self, exchange: Exchange, intake: Intake) -> Receipt:
        """Make an answer count, once."""
        number, client = exchange.round.number, intake.client
        with self._changed:
            verdict = exchange.round.judge(client, number, self._clock())
            if verdict in (Verdict.ACCEPTED, Verdict.DUPLICATE) and exchange.intakes.get(client) is not intake:
                raise untimely(client, Verdict.FAILED)
            if verdict is Verdict.ACCEPTED:
                with self._refusing(exchange, client, intake):
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
                raise untimely(client, verdict)
        return Receipt(number)

    def fail(self, exchange: Exchange, client: str, reason: str) -> None:
        """The client will not answer."""
        with self._changed:
            if client in exchange.answers:
                return
            exchange.round.fail(client, reason[:MAX_REASON_CHARACTERS], self._clock())
            exchange.drop(client)
            self._changed.notify_all()

    def due_at(self, exchange: Exchange) -> float:
        """Return when `tend` has something to do next, if nothing else happens."""
        timeout_s = self._contract.server.stall_timeout_s
        times = [time for intake in exchange.intakes.values() for time in intake.due_at(PATIENCE_S, timeout_s)]
        return min([*times, *(since + timeout_s for since in exchange.reading.values())], default=math.inf)

    def tend(self, exchange: Exchange) -> None:
        """See to those that nothing has come from for a while, or gone to."""
        now, timeout_s = self._clock(), self._contract.server.stall_timeout_s
        with self._changed:
            due = [(intake, *intake.due_at(PATIENCE_S, timeout_s)) for intake in exchange.intakes.values()]
            stalled = [intake.client for intake, _, fails_at in due if fails_at <= now]
            stalled += [client for client, since in exchange.reading.items() if since + timeout_s <= now]
            for client in stalled:
                exchange.reading.pop(client, None)
                self.fail(exchange, client, f"no bytes for {timeout_s:g} s (server.stall_timeout_s)")
        for intake, spills_at, fails_at in due:  # without the lock: a disk may be slow
            is_present = exchange.intakes.get(intake.client) is intake and intake.client not in exchange.answers
            if spills_at <= now < fails_at and intake.staged is not None and is_present:
                try:
                    intake.staged.spill()
                except StagingError as error:
                    self.fail(exchange, intake.client, str(error))

    def moved(self, exchange: Exchange, *, sent: int = 0, received: int = 0) -> None:
        """Count bytes of pieces."""
        with self._changed:
            exchange.traffic.sent += sent
            exchange.traffic.received += received
        self._observe(Moved(sent, received))

    def _resumed(self, exchange: Exchange, client: str, message: UpdateMessage) -> Intake | None:
        """Return the intake of this very answer, if it was announced before. Another answer begins anew."""
        with self._changed:
            intake = exchange.intakes.get(client)
            if intake is not None and intake.message == message:
                return intake
            if client in exchange.answers:
                raise untimely(client, Verdict.DUPLICATE)
        return None

    def _opened(self, exchange: Exchange, client: str, message: UpdateMessage, layout: Layout) -> Intake:
        check_message(message, client, exchange.returns, self._contract.bounds)
        staged = None
        if exchange.aggregator is not None:
            check_tensors(message, layout, client, self._form)
            staged = exchange.aggregator.stage(client, message.weight)
        intake = Intake(message, self._form, client, staged)
        with self._changed:
            verdict = exchange.round.judge(client, exchange.round.number, self._clock())
            if verdict is not Verdict.ACCEPTED:
                raise untimely(client, verdict)
            exchange.drop(client)
            exchange.intakes[client] = intake
        return intake

    @contextmanager
    def _refusing(self, exchange: Exchange, client: str, intake: Intake | None = None) -> Iterator[None]:
        """What is wrong with an answer costs its client its place in the round, and nobody anything else.

        An answer that another one of its client has taken the place of costs nothing.
        """
        try:
            yield
        except (UpdateError, MalformedMessage, SpecError) as error:
            if intake is None or exchange.intakes.get(client) is intake:
                self.fail(exchange, client, str(error))
            raise Refused(getattr(error, "kind", "malformed"), str(error)) from error
