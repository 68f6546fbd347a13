"""One piece: a header of 64 bytes, then one Arrow IPC record-batch message in canonical form.

    header   magic "FLCP" | protocol u16 | part u16 | segment u16 | zero u16 | zero u32
             first element u64 | count u64 | bytes of the message u64 | zero u64 | zero u64 | hash u64
    message  the record batch of one non-null column: 144 bytes of metadata, then count elements

All little-endian. The hash is xxh3 (64 bits) over the header before it and the message. The message's metadata is the
same bytes for the same count, whatever the dtype: `METADATA`, kept here as bytes of our own and patched with the
counts, so that no release of pyarrow changes the wire, and so that a received piece is compared and never parsed.
`schema_message` gives what must stand before a segment's messages for `pyarrow.ipc.open_stream` to read them.
"""

import struct
from collections.abc import Sequence

import xxhash

from flcore_transport.errors import PieceError, ProtocolMismatch
from flcore_transport.messages import PROTOCOL, WIRE_DTYPES

Buffer = bytes | bytearray | memoryview

MAGIC = b"FLCP"
HEADER = struct.Struct("<4sHHHHIQQQQQ")
HASH = struct.Struct("<Q")
HEADER_BYTES = HEADER.size + HASH.size
MAX_PIECE_BYTES = 4 << 20

METADATA = bytes.fromhex(
    "ffffffff8800000014000000000000000c0016000600050008000c000c0000000003040018000000"
    "ffffffffffffffff00000a0018000c00040008000a0000003c00000010000000ffffffffffffffff"
    "0000000002000000000000000000000000000000000000000000000000000000ffffffffffffffff"
    "0000000001000000ffffffffffffffff0000000000000000"
)
"""Flatbuffer of a record batch with one non-null column; the runs of eight `ff` are the counts to patch."""

_BODY_OFFSET = HEADER_BYTES + len(METADATA)


def metadata(count: int, itemsize: int) -> bytes:
    """Return the canonical metadata of a message of `count` elements of `itemsize` bytes."""
    patched = bytearray(METADATA)
    for offset, value in ((40, count * itemsize), (72, count), (112, count * itemsize), (128, count)):
        struct.pack_into("<Q", patched, offset, value)
    return bytes(patched)


def encode(part: int, segment: int, first: int, dtype: str, body: Sequence[Buffer]) -> bytes:
    """Return the piece that carries `body`, whose buffers are joined in order: the one copy that there is."""
    length = sum(len(memoryview(buffer).cast("B")) for buffer in body)
    itemsize = WIRE_DTYPES[dtype]
    message = metadata(length // itemsize, itemsize)
    header = HEADER.pack(MAGIC, PROTOCOL, part, segment, 0, 0, first, length // itemsize, len(message) + length, 0, 0)
    digest = xxhash.xxh3_64(header)
    digest.update(message)
    for buffer in body:
        digest.update(buffer)
    return b"".join((header, HASH.pack(digest.intdigest()), message, *body))


def decode(piece: bytes, part: int, segment: int, first: int, dtype: str, count: int) -> memoryview:
    """Return the elements of a piece as a view of its bytes, after checking that it is exactly the piece expected.

    Raises `ProtocolMismatch` for another protocol version and `PieceError` for anything else that is not to the letter.
    """
    itemsize = WIRE_DTYPES[dtype]
    expected_bytes = _BODY_OFFSET + count * itemsize
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
    if digest.intdigest() != HASH.unpack_from(piece, HEADER.size)[0]:
        raise PieceError("corrupt: its hash does not match its bytes")
    message = metadata(count, itemsize)
    wanted = [part, segment, 0, 0, first, count, len(message) + count * itemsize, 0, 0]
    if fields != wanted:
        raise PieceError(
            f"out of order: part {fields[0]}, segment {fields[1]}, elements {fields[4]} to {fields[4] + fields[5]} "
            f"came; expected part {part}, segment {segment}, elements {first} to {first + count}"
        )
    if view[HEADER_BYTES:_BODY_OFFSET] != message:
        raise PieceError("its Arrow metadata is not in canonical form")
    return view[_BODY_OFFSET:]


def schema_message(dtype: str) -> bytes:
    """Return the Arrow IPC schema message of a segment: one non-null column `value`, the dtype in its metadata.

    Followed by the messages of the segment's pieces it is an Arrow IPC stream, which any Arrow implementation reads.
    """
    import pyarrow as pa

    storage = {"float64": "double", "float32": "float", "float16": "halffloat", "bfloat16": "uint16"}.get(dtype, dtype)
    field = pa.field("value", pa.type_for_alias(storage), nullable=False, metadata={"flcore.dtype": dtype})
    return bytes(pa.schema([field]).serialize())


def body_bytes(dtype: str, count: int) -> int:
    return count * WIRE_DTYPES[dtype]


def message_metadata(dtype: str, count: int) -> bytes:
    return metadata(count, WIRE_DTYPES[dtype])
