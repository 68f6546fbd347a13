"""Seeded mutations of valid inputs: of bytes, of protobuf messages field by field, and of JSON values.

Each function takes a `random.Random`, a valid input, and another one to splice with.
"""

import json
import random
from collections.abc import Callable, Sequence
from typing import Any

EDGES = (0, 1, 2, 127, 128, 255, 256, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**53, 2**63 - 1, 2**63)
"""Numbers at which a length, a count or an offset overflows."""

Mutation = Callable[[random.Random, bytes, bytes], bytes]


def edge(draw: random.Random) -> int:
    """Return a number near a bound, of at most 64 bits."""
    return max(0, min(2**64 - 1, draw.choice((*EDGES, 2**64 - 1)) + draw.choice((-256, -1, 0, 0, 1, 256))))


def mutate_bytes(draw: random.Random, data: bytes, other: bytes) -> bytes:
    """Apply 1 to 4 changes that know nothing of the format."""
    changed = data
    for _ in range(draw.choice((1, 1, 1, 2, 4))):
        changed = _mutate_once(draw, changed, other)
    return changed


def _mutate_once(draw: random.Random, data: bytes, other: bytes) -> bytes:
    at, count = draw.randint(0, len(data)), draw.choice((1, 1, 2, 4, 8, 64))
    match draw.randrange(9):
        case 0 if data:  # flip a bit
            at = draw.randrange(len(data))
            return data[:at] + bytes([data[at] ^ 1 << draw.randrange(8)]) + data[at + 1 :]
        case 1:  # overwrite
            return data[:at] + draw.randbytes(count) + data[at + count :]
        case 2:  # a number of 2, 4 or 8 bytes at a bound
            size = draw.choice((2, 4, 8))
            number = edge(draw) % (1 << 8 * size)
            return data[:at] + number.to_bytes(size, draw.choice(("little", "big"))) + data[at + size :]
        case 3:  # delete
            return data[:at] + data[at + count :]
        case 4:  # insert
            return data[:at] + draw.randbytes(count) + data[at:]
        case 5:  # cut
            return data[:at]
        case 6:  # extend
            return data + (bytes(count) if draw.random() < 0.5 else draw.randbytes(count))
        case 7:  # repeat a slice
            return data[:at] + data[at : at + count] * draw.choice((2, 3, 100)) + data[at + count :]
        case _:  # splice
            return data[:at] + other[draw.randint(0, len(other)) :]


Field = tuple[int, int, bytes]
"""The number of a protobuf field, its wire type, and its content: a varint's bytes, or a payload without its length."""


def varint(number: int, padding: int = 0) -> bytes:
    """Return a varint, with so many bytes more than it needs: an overlong form."""
    data = bytearray()
    while number > 127:
        data.append(number & 127 | 128)
        number >>= 7
    return bytes(data) + bytes([number | (128 if padding else 0)]) + (b"\x80" * (padding - 1) + b"\0") * (padding > 0)


def split_fields(data: bytes) -> list[Field] | None:
    """Return the fields of a protobuf message, or None if it is none, or has groups."""
    fields: list[Field] = []
    at = 0
    while at < len(data):
        key, at = _read_varint(data, at)
        number, kind = key >> 3, key & 7
        if number == 0 or at < 0:
            return None
        if kind == 0:
            begin = at
            _, at = _read_varint(data, at)
        elif kind == 2:
            length, begin = _read_varint(data, at)
            at = begin + length if begin >= 0 else -1
        else:
            return None
        if at < 0 or at > len(data):
            return None
        fields.append((number, kind, data[begin:at]))
    return fields


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    """Return a varint and the offset behind it, which is -1 if there is none."""
    value = 0
    for position in range(at, min(len(data), at + 10)):
        value |= (data[position] & 127) << 7 * (position - at)
        if data[position] < 128:
            return value, position + 1
    return 0, -1


def join_fields(fields: Sequence[Field]) -> bytes:
    """Return the protobuf message that has these fields."""
    return b"".join(
        varint(number << 3 | kind) + (varint(len(content)) if kind == 2 else b"") + content
        for number, kind, content in fields
    )


def mutate_protobuf(draw: random.Random, data: bytes, other: bytes) -> bytes:
    """Change the fields of a protobuf message, or of a message in it; sometimes its bytes."""
    fields = split_fields(data)
    if not fields or draw.random() < 0.2:
        return mutate_bytes(draw, data, other)
    index = draw.randrange(len(fields))
    number, kind, content = fields[index]
    if kind == 2 and content and draw.random() < 0.5 and split_fields(content):
        donors = [each[2] for each in split_fields(other) or [] if each[1] == 2] or [other]
        fields[index] = (number, kind, mutate_protobuf(draw, content, draw.choice(donors)))
        return join_fields(fields)
    before, after = join_fields(fields[:index]), join_fields(fields[index + 1 :])
    return before + _mutate_field(draw, fields[index], split_fields(other) or fields) + after


def _mutate_field(draw: random.Random, field: Field, donors: Sequence[Field]) -> bytes:  # noqa: C901
    number, kind, content = field
    whole = join_fields([field])
    match draw.randrange(12):
        case 0:
            return b""
        case 1:
            return whole * draw.choice((2, 2, 2, 3, 3, 65, 65, 1_000))
        case 2:  # out of order, or of another message
            return join_fields([draw.choice(donors)]) + whole
        case 3:  # an overlong key
            padding = draw.choice((1, 2, 5, 9))
            return varint(number << 3 | kind, padding) + whole[len(varint(number << 3 | kind)) :]
        case 4:  # an overlong length or number
            padding = draw.choice((1, 3, 8, 9, 10))
            if kind == 2:
                return varint(number << 3 | 2) + varint(len(content), padding) + content
            return varint(number << 3) + varint(_read_varint(content, 0)[0], padding)
        case 5:  # a length that the message does not have
            return varint(number << 3 | 2) + varint(edge(draw)) + content
        case 6:  # a number at a bound, or a default that is written out
            return varint(number << 3) + varint(draw.choice((0, edge(draw))))
        case 7:  # another type
            return varint(number << 3 | draw.randrange(8)) + content
        case 8:  # another field, mostly one that the message does not have
            return join_fields([(draw.choice((number + 1, 5, 15, 16, 2**28, 2**29 - 1)), kind, content)]) + whole
        case 9:  # nested groups
            return bytes([draw.choice((0x0B, 0x0A))]) * draw.choice((1, 50, 101, 10_000)) + whole
        case 10:  # text that is not UTF-8, or has zeros
            bad = draw.choice((b"\xff", b"\xc0\x80", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"a\0b", b"\xc3"))
            return join_fields([(number, 2, content[:3] + bad + content[3:])])
        case _:
            return join_fields([(number, 2, draw.choice((b"", b"\n" * 70, mutate_bytes(draw, content, whole))))])


class Raw(str):
    """Text that stands in JSON as it is."""

    __slots__ = ()


class _Object:
    """A JSON object, which may have a key twice."""

    def __init__(self, pairs: list[tuple[str, Any]]) -> None:
        self.pairs = pairs


HOSTILE_VALUES: tuple[Any, ...] = (
    *(Raw(text) for text in ("NaN", "Infinity", "-Infinity", "1e400", "-1e400", "1e-400", "-0", "-0.0", "1.0", "1E2")),
    *(Raw(text) for text in ("01", "+1", ".5", "0x10", "1_000", "'a'", "undefined", "/**/1", "1,", "tru", "", "\x0b1")),
    *(Raw(text) for text in ('"\\ud800"', '"\\ud83d\\ude00"', '"\\x41"', '"a\nb"', '"\\u0000"', '"\udcff"')),
    *(-(2**63) - 1, 2**64, 2**1024, 10**300, 1e308, 0.1, 2**53 + 1, None, True, False, "", "a" * 2000, [], {}),
    *(Raw("[" * depth + "]" * depth) for depth in (5, 150, 250, 1_100, 5_000)),
    *(Raw('{"a":' * depth + "1" + "}" * depth) for depth in (5, 150, 250, 1_100, 5_000)),
    *(Raw("9" * 5_000), Raw("[" + "1," * 3_000 + "1]"), Raw("1" * 200 + "." + "1" * 200), "1.5", "nan", "é\u2028"),
)


def mutate_json(draw: random.Random, data: bytes, other: bytes) -> bytes:
    """Change the values and keys of a JSON text, and how it is written; sometimes its bytes."""
    if draw.random() < 0.25:
        return mutate_bytes(draw, data, other)
    try:
        tree, donor = (json.loads(each, object_pairs_hook=_Object) for each in (data, other))
    except ValueError:
        return mutate_bytes(draw, data, other)
    nodes: list[Any] = []
    _collect(tree, nodes)
    donors: list[Any] = []
    _collect(donor, donors)
    for _ in range(draw.choice((0, 1, 1, 1, 2))):
        if nodes:
            _mutate_node(draw, draw.choice(nodes), donors)
    text = _dump(draw, tree, draw.choice((0.0, 0.0, 0.1)))
    encoded = text.encode("utf-8", "surrogateescape")
    match draw.randrange(20):
        case 0:
            return b"\xef\xbb\xbf" + encoded
        case 1:
            return text.encode(draw.choice(("utf-16", "utf-16-le", "utf-32")), "replace")
        case 2:
            return encoded + draw.choice((b"\n", b" ", b"\0", b"{}", b",", b"]", b"\xff"))
        case _:
            return encoded


def _collect(value: Any, nodes: list[Any]) -> None:
    """Collect all objects and lists of a value."""
    if isinstance(value, _Object):
        nodes.append(value)
        for _, item in value.pairs:
            _collect(item, nodes)
    elif isinstance(value, list):
        nodes.append(value)
        for item in value[:50]:
            _collect(item, nodes)


def _mutate_node(draw: random.Random, node: Any, donors: Sequence[Any]) -> None:
    value = draw.choice((*HOSTILE_VALUES, *donors, edge(draw)))
    members: list[Any] = node.pairs if isinstance(node, _Object) else node
    if not members:
        members.append(("a", value) if isinstance(node, _Object) else value)
        return
    index, kind = draw.randrange(len(members)), draw.randrange(8)
    if kind == 0:
        del members[index]
    elif kind == 1:
        members.insert(draw.randint(0, len(members)), members[index])
    elif kind == 2:
        times = draw.choice((2, 65)) if draw.random() < 0.95 else 2_000
        members[:] = members * times if len(members) < 100 else members[::-1]
    elif kind == 3:
        draw.shuffle(members)
    elif isinstance(node, _Object):
        key, old = members[index]
        if kind == 4:
            members[index] = (draw.choice((key.upper(), key + " ", "", "é", "upload_id", "format", "x" * 300)), old)
        elif kind == 5:
            members.append((key, value))
        else:
            members[index] = (key, value)
    else:
        members[index] = value


def _dump(draw: random.Random, value: Any, spaces: float) -> str:
    gap = draw.choice((" ", "\n", "\t\r ", "\x0c", "\xa0")) if spaces and draw.random() < spaces else ""
    if isinstance(value, Raw):
        return gap + value
    if isinstance(value, _Object):
        return gap + "{" + ",".join(f"{json.dumps(k)}{gap}:{_dump(draw, v, spaces)}" for k, v in value.pairs) + "}"
    if isinstance(value, list):
        return gap + "[" + ",".join(_dump(draw, item, spaces) for item in value) + gap + "]"
    return gap + json.dumps(value, ensure_ascii=draw.random() < 0.5)
