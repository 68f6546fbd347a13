"""What a client's calls of one exchange go through: its model on the way out, its answer on the way in."""

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Protocol

from flcore_transport import Buffer, PieceRange, Receipt, Refused

from flcore.errors import Untimely
from flcore.model.form import Form
from flcore.model.narrow import Narrowed
from flcore.server.exchange import Exchange
from flcore.server.intake import Intake
from flcore.server.round import Verdict


def untimely(client: str, verdict: Verdict) -> Refused:
    """Return the refusal of an answer that cannot count any more."""
    error = Untimely(f"not taken: {verdict.value}", client=client)
    return Refused(error.kind, str(error))


class Reading:
    """A client's reading of its order's model: the source of a payload, until the model is gone."""

    def __init__(
        self, exchange: Exchange, client: str, form: Form, clock: Callable[[], float], moved: Callable[..., None]
    ) -> None:
        self.layout = form.layout
        self._exchange, self._client, self._form, self._clock, self._moved = exchange, client, form, clock, moved

    def read(self, piece: PieceRange) -> Sequence[Buffer]:
        """Return the bytes of a range, or raise `Refused` once the next round has closed."""
        exchange = self._exchange
        model = exchange.model
        if model is None:
            error = Untimely("its round's model is gone: the round after it has closed", client=self._client)
            raise Refused(error.kind, str(error))
        buffers = Narrowed(self._form, model).read(piece)
        if piece == self._form.pieces[len(self._form.pieces) - 1]:
            exchange.reading.pop(self._client, None)
        else:
            exchange.reading[self._client] = self._clock()
        self._moved(exchange, sent=sum(memoryview(buffer).nbytes for buffer in buffers))
        return buffers


class Recipient(Protocol):
    """Who takes what an upload brings."""

    def begin(self, exchange: Exchange, intake: Intake) -> "Future[None]":
        """Pieces could come now; the future is done as soon as they may."""
        ...

    def take(self, exchange: Exchange, intake: Intake, piece: bytes) -> None:
        """Take the next piece."""
        ...

    def commit(self, exchange: Exchange, intake: Intake) -> Receipt:
        """Make the answer count."""
        ...


class Upload:
    """One stream that carries an answer: the transport's `Delivery`. The newest stream of an answer owns it."""

    def __init__(self, recipient: Recipient, exchange: Exchange, intake: Intake) -> None:
        self._recipient, self._exchange, self._intake = recipient, exchange, intake
        self._stream = object()
        with intake.lock:
            intake.stream = self._stream
            intake.quiet_since = None  # until it begins: it may have to wait in line

    @property
    def received(self) -> int:
        """How many pieces are in."""
        return self._intake.inbox.received

    @property
    def expected(self) -> int:
        """How many pieces it has in all."""
        return len(self._intake.inbox.plan)

    @property
    def is_complete(self) -> bool:
        """Whether the last piece is in."""
        return self._intake.inbox.is_complete

    def begin(self) -> "Future[None]":
        """Pieces could come now; the future is done as soon as they may."""
        return self._recipient.begin(self._exchange, self._intake)

    def accept(self, piece: bytes) -> None:
        """Take the next piece."""
        with self._intake.lock:
            if self._intake.stream is not self._stream:
                raise Refused(Untimely.kind, f"client {self._intake.client!r}: a newer stream carries this update now")
            self._recipient.take(self._exchange, self._intake, piece)

    def commit(self) -> Receipt:
        """Make the answer count."""
        return self._recipient.commit(self._exchange, self._intake)
