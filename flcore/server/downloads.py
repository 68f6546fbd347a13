"""Downloads: a client reads its assignment's model until the round has closed or the client has failed in it."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from flcore_layout import Layout, SegmentRange
from flcore_transport import Buffer, Outbox

from flcore.errors import Untimely
from flcore.model.chunks import GlobalModel
from flcore.model.compression import Compressor
from flcore.model.wire_format import WireFormat
from flcore.server.open_round import OpenRound
from flcore.server.uploads import refusal_for

if TYPE_CHECKING:
    from flcore.server.round_registry import RoundRegistry


class ModelDownload(Outbox):
    """One call that reads a round's model; pieces are made once for all clients that read side by side."""

    def __init__(self, rounds: "RoundRegistry", open_round: OpenRound, client: str, wire_format: WireFormat) -> None:
        super().__init__(Compressor(wire_format, _RoundModel(open_round, client)), open_round.piece_cache)
        self._rounds, self._round, self._client = rounds, open_round, client

    def on_queued(self) -> None:
        """The call waits for its turn."""
        self._rounds.download_queued(self._round, self._client)

    def cached_piece(self, index: int) -> bytes | None:
        """Return a piece that another client was sent a moment ago."""
        piece = super().cached_piece(index)
        if piece is not None:
            self._report_sent(piece, index)
        return piece

    def piece(self, index: int) -> bytes:
        """Return a piece, or raise `Refused` once the round has closed."""
        piece = super().piece(index)
        self._report_sent(piece, index)
        return piece

    def _report_sent(self, piece: bytes, index: int) -> None:
        self._rounds.piece_sent(self._round, self._client, len(piece), is_last=index == len(self.piece_ranges) - 1)


class _RoundModel:
    """A round's model, as long as it is there."""

    def __init__(self, open_round: OpenRound, client: str) -> None:
        self._round, self._client = open_round, client

    @property
    def layout(self) -> Layout:
        return self._require_model().layout

    def read(self, piece: SegmentRange) -> Sequence[Buffer]:
        return self._require_model().read(piece)

    def _require_model(self) -> GlobalModel:
        model = self._round.model
        if model is None:
            raise refusal_for(Untimely("its round has closed, and the model is gone", client=self._client))
        return model
