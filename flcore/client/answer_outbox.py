"""The sending side of an answer: it sends the same bytes each time, or none."""

from flcore_transport import Outbox, PayloadSource
from flcore_transport.piece_format import HEADER_BYTES

from flcore.errors import UpdateError

CHECKSUM_BYTES = 8
"""A piece's header ends with its checksum."""


class AnswerChanged(UpdateError):
    """The arrays of an answer have other elements than when it was sent first.

    They are the task's own arrays and may refer to the client's model: another task may overwrite them.
    """


class AnswerOutbox(Outbox):
    """An `Outbox` that compares each piece with the one that it has sent before.

    Args:
        source: The answer's elements.
    """

    def __init__(self, source: PayloadSource) -> None:
        super().__init__(source)
        self._checksums: dict[int, bytes] = {}

    @property
    def has_sent_all(self) -> bool:
        """Whether each piece has been sent, so that a change of any will be found."""
        return len(self._checksums) == len(self.piece_ranges)

    def piece(self, index: int) -> bytes:
        """Return piece `index`, encoded, or raise `AnswerChanged`."""
        piece = super().piece(index)
        checksum = piece[HEADER_BYTES - CHECKSUM_BYTES : HEADER_BYTES]
        if self._checksums.setdefault(index, checksum) != checksum:
            raise AnswerChanged("the arrays of the last update have been overwritten since it was sent")
        return piece
