"""The public format of a piece: sizes, bodies and Arrow messages, for code that encodes, stores or reads pieces."""

from flcore_transport.arrow_schema import arrow_schema_message
from flcore_transport.framing import (
    HEADER_BYTES,
    MAX_PIECE_BYTES,
    arrow_message_bytes,
    arrow_metadata,
    body_bytes,
    decode_piece,
    join_body,
    piece_bytes,
    split_body,
)
from flcore_transport.pieces import PIECE_BODY_BYTES, PieceRanges, piece_elements

__all__ = [
    "HEADER_BYTES",
    "MAX_PIECE_BYTES",
    "PIECE_BODY_BYTES",
    "PieceRanges",
    "arrow_message_bytes",
    "arrow_metadata",
    "arrow_schema_message",
    "body_bytes",
    "decode_piece",
    "join_body",
    "piece_bytes",
    "piece_elements",
    "split_body",
]
