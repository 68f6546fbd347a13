"""A client's reading of its order's model, until the round has closed or the client has failed in it."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from flcore_transport import Buffer, Layout, Outbox, PieceRange

from flcore.errors import Untimely
from flcore.model.chunks import GlobalModel
from flcore.model.compression import Compressor
from flcore.model.wire_format import WireFormat
from flcore.server.open_round import OpenRound
from flcore.server.uploads import refused

if TYPE_CHECKING:
    from flcore.server.rounds import Rounds


class Download(Outbox):
    """One call that reads a round's model; pieces are made once for all clients that read side by side."""

    def __init__(self, rounds: "Rounds", open_round: OpenRound, client: str, wire_format: WireFormat) -> None:
        super().__init__(Compressor(wire_format, _Model(open_round, client)), open_round.shared)
        self._rounds, self._round, self._client = rounds, open_round, client

    def queued(self) -> None:
        """The call waits for its turn."""
        self._rounds.download_queued(self._round, self._client)

    def at_hand(self, index: int) -> bytes | None:
        """Return a piece that another client was sent a moment ago."""
        piece = super().at_hand(index)
        if piece is not None:
            self._sent(piece, index)
        return piece

    def piece(self, index: int) -> bytes:
        """Return a piece, or raise `Refused` once the round has closed."""
        piece = super().piece(index)
        self._sent(piece, index)
        return piece

    def _sent(self, piece: bytes, index: int) -> None:
        self._rounds.piece_sent(self._round, self._client, len(piece), is_last=index == len(self.plan) - 1)


class _Model:
    """A round's model, as long as it is there."""

    def __init__(self, open_round: OpenRound, client: str) -> None:
        self._round, self._client = open_round, client

    @property
    def layout(self) -> Layout:
        return self._required().layout

    def read(self, piece: PieceRange) -> Sequence[Buffer]:
        return self._required().read(piece)

    def _required(self) -> GlobalModel:
        model = self._round.model
        if model is None:
            raise refused(Untimely("its round has closed, and the model is gone", client=self._client))
        return model
