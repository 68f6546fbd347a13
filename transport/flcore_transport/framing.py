"""One piece: a header of 64 bytes, then one Arrow IPC record-batch message in canonical form.

    header   magic "FLCP" | protocol u16 | part u16 | segment u16 | zero u16 | zero u32
             first element u64 | count u64 | bytes of the message u64 | zero u64 | zero u64 | checksum u64
    message  the record batch: its metadata, then its body
             plain      one non-null column: 144 bytes of metadata, then count elements
             quantized  a row for each block: 224 bytes of metadata, then the scales, zeros up to a multiple of 8 bytes,
                        and count int8 codes

All little-endian. The checksum is xxh3 (64 bits) over the header before it and the message. The message's metadata
names neither the dtype nor the block. It is `ARROW_METADATA` or `QUANTIZED_ARROW_METADATA`, kept here as bytes and
patched with the counts and lengths in bytes. So no release of pyarrow changes the wire, and a received piece is
compared and never parsed. `arrow_schema_message` gives the schema that must stand before a segment's messages for
`pyarrow.ipc.open_stream` to read them.
"""

import struct
from collections.abc import Sequence

import xxhash

from flcore_transport.errors import PieceError, ProtocolMismatch
from flcore_transport.messages import PROTOCOL, wire_dtype

Buffer = bytes | bytearray | memoryview

MAGIC = b"FLCP"
HEADER = struct.Struct("<4sHHHHIQQQQQ")
CHECKSUM = struct.Struct("<Q")
HEADER_BYTES = HEADER.size + CHECKSUM.size
MAX_PIECE_BYTES = 4 << 20

ARROW_METADATA = bytes.fromhex(
    "ffffffff8800000014000000000000000c0016000600050008000c000c0000000003040018000000"
    "ffffffffffffffff00000a0018000c00040008000a0000003c00000010000000ffffffffffffffff"
    "0000000002000000000000000000000000000000000000000000000000000000ffffffffffffffff"
    "0000000001000000ffffffffffffffff0000000000000000"
)
"""Flatbuffer of a record batch with one non-null column; each run of eight `ff` is a number to patch."""

QUANTIZED_ARROW_METADATA = bytes.fromhex(
    "ffffffffd800000014000000000000000c0016000600050008000c000c0000000003040018000000"
    "ffffffffffffffff00000a0018000c00040008000a0000006c00000010000000ffffffffffffffff"
    "0000000005000000000000000000000000000000000000000000000000000000ffffffffffffffff"
    "ffffffffffffffff0000000000000000ffffffffffffffff0000000000000000ffffffffffffffff"
    "ffffffffffffffff0000000003000000ffffffffffffffff0000000000000000ffffffffffffffff"
    "0000000000000000ffffffffffffffff0000000000000000"
)
"""The same for a record batch with non-null columns `scale: float32` and `codes: fixed_size_list<int8>[block]`."""

_PLACEHOLDER = b"\xff" * 8


def checksum_of(data: bytes) -> bytes:
    """Return the checksum of bytes as it travels."""
    return CHECKSUM.pack(xxhash.xxh3_64_intdigest(data))


def body_bytes(dtype: str, count: int) -> int:
    """Return how many bytes the body of a message of `count` elements has.

    >>> body_bytes("float32", 256), body_bytes("int8[256]", 256)
    (1024, 264)
    """
    row = wire_dtype(dtype, count)
    return row.elements_at(count) + count * row.itemsize


def arrow_message_bytes(dtype: str, count: int) -> int:
    """Return how many bytes a message of `count` elements has, metadata and body; always a multiple of 8.

    In a segment's stream, message *i* begins after the schema message and *i* messages of full pieces.
    """
    return len(arrow_metadata(dtype, count)) + body_bytes(dtype, count)


def piece_bytes(dtype: str, count: int) -> int:
    """Return how many bytes a piece of `count` elements has, header and message."""
    return HEADER_BYTES + arrow_message_bytes(dtype, count)


def arrow_metadata(dtype: str, count: int) -> bytes:
    """Return the canonical metadata of a message of `count` elements; its body follows."""
    row, body = wire_dtype(dtype, count), body_bytes(dtype, count)
    template = ARROW_METADATA
    counts: tuple[int, ...] = (body, count, body, count)
    if row.block:
        # Body length and rows. Of the buffers: the scales' length; the offsets of two empty validity buffers and of the
        # codes; the codes' length. Last, the lengths of the columns scale and codes, and of the codes' items.
        rows, scales, at = count // row.block, row.scale_bytes(count), row.elements_at(count)
        template = QUANTIZED_ARROW_METADATA
        counts = (body, rows, scales, at, at, at, count, rows, rows, count)
    message, *rest = template.split(_PLACEHOLDER)
    for number, fixed in zip(counts, rest, strict=True):
        message += struct.pack("<Q", number) + fixed
    return message


def join_body(dtype: str, count: int, elements: Sequence[Buffer], scales: Sequence[Buffer] = ()) -> list[Buffer]:
    """Return the buffers of a body in the order of the wire, none of them copied.

    `elements` are the codes of a quantized dtype; a plain one has no scales. Raises `PieceError` for other lengths than
    `count` elements have.
    """
    row = wire_dtype(dtype, count)
    _require_size("the elements", dtype, count, _size(elements), count * row.itemsize)
    _require_size("the scales", dtype, count, _size(scales), row.scale_bytes(count))
    return [*scales, bytes(row.elements_at(count) - row.scale_bytes(count)), *elements]


def split_body(dtype: str, count: int, body: memoryview) -> tuple[memoryview, memoryview]:
    """Return views of a body's elements and of its scales (float32, none for a plain dtype), both as bytes."""
    row = wire_dtype(dtype, count)
    _require_size("the body", dtype, count, body.nbytes, body_bytes(dtype, count))
    view = body.cast("B")
    return view[row.elements_at(count) :], view[: row.scale_bytes(count)]


def encode_piece(part: int, segment: int, first: int, dtype: str, count: int, body: Sequence[Buffer]) -> bytes:
    """Return the piece that carries `body`, whose buffers are joined in order. This is the only copy.

    Raises `PieceError` if the buffers have another length than the body of `count` elements. `join_body` puts codes
    and scales in order.
    """
    message, length = arrow_metadata(dtype, count), _size(body)
    _require_size("the body", dtype, count, length, body_bytes(dtype, count))
    header = HEADER.pack(MAGIC, PROTOCOL, part, segment, 0, 0, first, count, len(message) + length, 0, 0)
    digest = xxhash.xxh3_64(header)
    digest.update(message)
    for buffer in body:
        digest.update(buffer)
    return b"".join((header, CHECKSUM.pack(digest.intdigest()), message, *body))


def decode_piece(piece: bytes, part: int, segment: int, first: int, dtype: str, count: int) -> memoryview:
    """Return the body of a piece as a view of its bytes, after checking that it is exactly the piece expected.

    Raises `ProtocolMismatch` for another protocol version and `PieceError` for any other difference.
    """
    row, message = wire_dtype(dtype, count), arrow_metadata(dtype, count)
    body_at = HEADER_BYTES + len(message)
    expected_bytes = body_at + body_bytes(dtype, count)
    if len(piece) < HEADER_BYTES:
        raise PieceError(f"truncated: {len(piece)} bytes came, a header alone has {HEADER_BYTES}")
    magic, protocol, *fields = HEADER.unpack_from(piece)
    if magic != MAGIC:
        raise PieceError(f"not a piece: it begins with {magic!r}, expected {MAGIC!r}")
    if protocol != PROTOCOL:
        raise ProtocolMismatch(f"the piece is of protocol version {protocol}, expected {PROTOCOL}")
    if len(piece) != expected_bytes:
        raise PieceError(f"truncated or padded: {len(piece)} bytes came, expected {expected_bytes}")
    view = memoryview(piece)
    digest = xxhash.xxh3_64(view[: HEADER.size])
    digest.update(view[HEADER_BYTES:])
    if digest.intdigest() != CHECKSUM.unpack_from(piece, HEADER.size)[0]:
        raise PieceError("corrupt: its checksum does not match its bytes")
    wanted = [part, segment, 0, 0, first, count, expected_bytes - HEADER_BYTES, 0, 0]
    if fields != wanted:
        raise PieceError(
            f"out of order: part {fields[0]}, segment {fields[1]}, elements {fields[4]} to {fields[4] + fields[5]} "
            f"came; expected part {part}, segment {segment}, elements {first} to {first + count}"
        )
    if view[HEADER_BYTES:body_at] != message:
        raise PieceError("its Arrow metadata is not in canonical form")
    body = view[body_at:]
    if any(body[row.scale_bytes(count) : row.elements_at(count)]):
        raise PieceError("not zero between its scales and its codes")
    return body


def _size(buffers: Sequence[Buffer]) -> int:
    return sum(memoryview(buffer).nbytes for buffer in buffers)


def _require_size(what: str, dtype: str, count: int, came: int, expected: int) -> None:
    if came != expected:
        raise PieceError(f"{what} of {count} of {dtype!r}: {came} bytes came, expected {expected}")
