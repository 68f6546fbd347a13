"""What a client's calls of one exchange go through: its model on the way out, its answer on the way in."""

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Protocol

from flcore_transport import Buffer, Layout, Outbox, PieceRange, Receipt, Refused

from flcore.errors import Untimely
from flcore.model.chunks import GlobalModel
from flcore.model.form import Form
from flcore.model.narrow import Narrowed
from flcore.server.exchange import Exchange
from flcore.server.intake import Intake
from flcore.server.round import Verdict


def untimely(client: str, verdict: Verdict) -> Refused:
    """Return the refusal of an answer that cannot count any more."""
    error = Untimely(f"not taken: {verdict.value}", client=client)
    return Refused(error.kind, str(error))


class Reading(Outbox):
    """A client's reading of its order's model, until the model is gone."""

    def __init__(
        self, exchange: Exchange, client: str, form: Form, clock: Callable[[], float], moved: Callable[..., None]
    ) -> None:
        super().__init__(Narrowed(form, _Model(exchange, client)), exchange.shared)
        self._exchange, self._client, self._clock, self._moved = exchange, client, clock, moved

    def at_hand(self, index: int) -> bytes | None:
        """Return a piece that another client was sent a moment ago."""
        piece = super().at_hand(index)
        if piece is not None:
            self._sent(index, piece)
        return piece

    def piece(self, index: int) -> bytes:
        """Return a piece, or raise `Refused` once the next round has closed."""
        piece = super().piece(index)
        self._sent(index, piece)
        return piece

    def _sent(self, index: int, piece: bytes) -> None:
        if index == len(self.plan) - 1:
            self._exchange.reading.pop(self._client, None)
        else:
            self._exchange.reading[self._client] = self._clock()
        self._moved(self._exchange, sent=len(piece))


class _Model:
    """What an exchange's clients read, as long as it is there."""

    def __init__(self, exchange: Exchange, client: str) -> None:
        self._exchange, self._client = exchange, client

    @property
    def layout(self) -> Layout:
        return self._required().layout

    def read(self, piece: PieceRange) -> Sequence[Buffer]:
        return self._required().read(piece)

    def _required(self) -> GlobalModel:
        model = self._exchange.model
        if model is None:
            error = Untimely("its round's model is gone: the round after it has closed", client=self._client)
            raise Refused(error.kind, str(error))
        return model


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

    def ended(self, exchange: Exchange, intake: Intake) -> None:
        """The stream that carries the answer has ended, for now or for good."""
        ...


class Upload:
    """One stream that carries an answer: the transport's `Delivery`. The newest stream of an answer owns it."""

    def __init__(self, recipient: Recipient, exchange: Exchange, intake: Intake) -> None:
        self._recipient, self._exchange, self._intake = recipient, exchange, intake
        self._stream = object()
        with intake.lock:
            intake.stream = self._stream

    @property
    def received(self) -> int:
        """How many pieces are in."""
        return self._intake.inbox.received

    @property
    def expected(self) -> int:
        """How many pieces it has in all."""
        return len(self._intake.inbox.plan)

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

    def end(self) -> None:
        """The stream has ended."""
        if self._intake.stream is self._stream:
            self._recipient.ended(self._exchange, self._intake)
