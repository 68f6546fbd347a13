"""The Arrow IPC schema message of a segment, written without pyarrow.

A schema message is a flatbuffer (https://flatbuffers.dev/internals) of the tables in Arrow's `Message.fbs` and
`Schema.fbs`. Importing pyarrow for it would cost a server memory and start-up time, and nothing else here needs it.

All objects of a schema are aligned to 4 bytes, and all references point forward, relative to their own position. So
each object is a *block*: bytes that may stand anywhere, followed by the objects that it refers to.
"""

import struct
from dataclasses import dataclass
from functools import cache

from flcore_layout import Dtype

from flcore_transport.messages import wire_dtype

SCHEMA_HEADER = 1  # MessageHeader.Schema
METADATA_V5 = 4  # MetadataVersion.V5
INT, FLOATING_POINT, FIXED_SIZE_LIST = 2, 3, 16  # members of the union Type
FLOATS = {"halffloat", "float", "double"}
PRECISIONS = {2: 0, 4: 1, 8: 2}  # of FloatingPoint: HALF, SINGLE, DOUBLE; by bytes


@dataclass(frozen=True, slots=True)
class _Block:
    """The bytes of an object, which begins at byte `at`, and of all that it refers to; a multiple of 4 bytes."""

    data: bytes
    at: int = 0


@cache
def arrow_schema_message(dtype: str) -> bytes:
    """Return the Arrow IPC schema message of a segment; its length is a multiple of 8.

    A plain segment has one non-null column `value`, a quantized one `scale` and `codes`; the last column's metadata has
    the dtype. Followed by the messages of the segment's pieces it is an Arrow IPC stream, which any Arrow
    implementation reads. Raises `PieceError` for an unknown dtype.
    """
    row = wire_dtype(dtype)
    if row.block:
        item = _field("item", *_number(row))
        listed = _table(row.block)
        columns = [
            _field("scale", *_number(wire_dtype("float32"))),
            _field("codes", FIXED_SIZE_LIST, listed, children=[item], dtype=dtype),
        ]
    else:
        columns = [_field("value", *_number(row), dtype=dtype)]
    schema = _table(None, _vector(columns))  # endianness (little, the default), fields
    message = _table(METADATA_V5, SCHEMA_HEADER, schema)
    flatbuffer = struct.pack("<I", 4 + message.at) + message.data
    flatbuffer += bytes(-len(flatbuffer) % 8)
    return struct.pack("<II", 0xFFFFFFFF, len(flatbuffer)) + flatbuffer


def _number(row: Dtype) -> tuple[int, _Block]:
    """Return the type of a column of numbers: its member of the union, and its table."""
    if row.arrow in FLOATS:
        return FLOATING_POINT, _table(PRECISIONS[row.itemsize])
    return INT, _table(8 * row.itemsize, int(not row.arrow.startswith("uint")))  # bits, is signed


def _field(
    name: str, type_member: int, type_table: _Block, *, children: list[_Block] | None = None, dtype: str = ""
) -> _Block:
    metadata = _vector([_table(_string("flcore.dtype"), _string(dtype))]) if dtype else None
    # name, nullable (absent: false), type, dictionary, children (expected by some readers, even if empty), metadata
    return _table(_string(name), None, type_member, type_table, None, _vector(children or []), metadata)


def _table(*fields: int | _Block | None) -> _Block:
    """Return a table of numbers and references; a field that is None is absent, and has its default.

    Every field takes 4 bytes: a reader takes the low ones of a shorter number.
    """
    present = [each for each in fields if each is not None]
    places = iter(range(4, 4 + 4 * len(present), 4))
    places_of_all = [0 if each is None else next(places) for each in fields]
    lengths = (4 + 2 * len(fields), 4 + 4 * len(present))
    vtable = struct.pack(f"<{2 + len(fields)}H", *lengths, *places_of_all)
    vtable += bytes(-len(vtable) % 4)
    start = struct.pack("<i", len(vtable))  # how far before the table its vtable begins
    return _Block(vtable + start + _inline(present), len(vtable))


def _vector(items: list[_Block]) -> _Block:
    return _Block(struct.pack("<I", len(items)) + _inline(items))


def _string(text: str) -> _Block:
    data = text.encode()
    return _Block(struct.pack("<I", len(data)) + data + bytes(4 - len(data) % 4))  # at least one zero ends it


def _inline(values: "list[int | _Block] | list[_Block]") -> bytes:
    """Return 4 bytes for each value, and behind them what they refer to."""
    inline, behind, size = b"", b"", 4 * len(values)
    for index, value in enumerate(values):
        if isinstance(value, _Block):
            inline += struct.pack("<I", size + len(behind) + value.at - 4 * index)
            behind += value.data
        else:
            inline += struct.pack("<i", value)
    return inline + behind
