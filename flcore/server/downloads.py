"""Downloads: a client reads its assignment's model until the attempt has closed or the client has failed in it."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from flcore_layout import Layout, SegmentRange
from flcore_transport import Buffer, Outbox, Refused

from flcore.disk_errors import describe_disk_error
from flcore.errors import StagingError, Untimely
from flcore.model.chunks import GlobalModel
from flcore.model.compression import Compressor
from flcore.model.wire_format import WireFormat
from flcore.server.events import Observer
from flcore.server.open_attempt import OpenAttempt
from flcore.server.transfer_events import DownloadBegan, DownloadEnded
from flcore.server.uploads import as_refused

if TYPE_CHECKING:
    from flcore.server.federation_state import FederationState


class ModelDownload(Outbox):
    """One download call. Pieces are encoded once for all clients that download at the same time."""

    def __init__(
        self,
        state: "FederationState",
        open_attempt: OpenAttempt,
        client: str,
        wire_format: WireFormat,
        observe: Observer,
    ) -> None:
        super().__init__(Compressor(wire_format, _AttemptModel(open_attempt, client)), open_attempt.piece_cache)
        self._state, self._open_attempt, self._client = state, open_attempt, client
        self._observe, self._sent_bytes = observe, 0

    def on_queued(self) -> None:
        """Tell the attempt that the call waits for a window."""
        self._state.download_queued(self._open_attempt, self._client)

    def cached_piece(self, index: int) -> bytes | None:
        """Return a piece from the cache if another client was sent it a moment ago."""
        piece = super().cached_piece(index)
        if piece is not None:
            self._report_sent(piece, index)
        return piece

    def piece(self, index: int) -> bytes:
        """Return a piece, or raise `Refused` if the attempt has closed or the disk does not give the model."""
        try:
            piece = super().piece(index)
        except OSError as error:
            reason = f"the model cannot be read: {describe_disk_error(error, Path('its file'))}"
            self._state.fail(self._open_attempt, self._client, reason, is_at_fault=False)
            raise Refused(StagingError.kind, "the server could not read the model") from error  # no path of the server
        self._report_sent(piece, index)
        return piece

    def _report_sent(self, piece: bytes, index: int) -> None:
        task, round_number, is_last = self._open_attempt.task, self._open_attempt.round, self._is_last(index)
        is_first, self._sent_bytes = not self._sent_bytes, self._sent_bytes + len(piece)
        self._state.piece_sent(self._open_attempt, self._client, len(piece), is_last=is_last)
        if is_first:
            self._observe(DownloadBegan(task, round_number, self._client))
        if is_last:
            self._observe(DownloadEnded(task, round_number, self._client, self._sent_bytes))

    def _is_last(self, index: int) -> bool:
        return index == len(self.piece_ranges) - 1


class _AttemptModel:
    """The model of an attempt while it is open.

    Holds the attempt and not the model, so that a slow download does not keep the model in memory after the close.
    """

    def __init__(self, open_attempt: OpenAttempt, client: str) -> None:
        self._open_attempt, self._client = open_attempt, client

    @property
    def layout(self) -> Layout:
        return self._require_model().layout

    def read(self, range_: SegmentRange) -> Sequence[Buffer]:
        return self._require_model().read(range_)

    def _require_model(self) -> GlobalModel:
        model = self._open_attempt.model
        if model is None:
            raise as_refused(Untimely("the attempt has closed, and its model is freed", client=self._client))
        return model
